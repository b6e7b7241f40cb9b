"""Many trials on Ray Tune: search.py suggests, driver.py runs, workers.py starts sharded stages."""
