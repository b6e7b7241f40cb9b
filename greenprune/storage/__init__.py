"""Where runs and artifacts live, and how a file comes there whole.

place.py: a folder or an object store. bucket.py: what is asked of an object store. folder.py: what NFS promises.
leases.py: locks between nodes. locks.py: between processes of one. mirror.py: what a node keeps of an object store.
files.py: a file is whole or not there. manifest.py: is a finished folder what it was? following.py: a half-done folder,
sent as it grows.
"""

from greenprune.storage.bucket import FileState
from greenprune.storage.files import cache_dir, sync, write_atomically
from greenprune.storage.place import Storage, local_folder

__all__ = ["FileState", "Storage", "cache_dir", "local_folder", "sync", "write_atomically"]
