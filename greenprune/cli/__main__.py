"""python -m greenprune.cli"""

from greenprune.cli import main

main()
