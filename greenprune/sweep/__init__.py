"""Many trials on Ray Tune: search.py suggests, driver.py runs them, trial_driver.py one, stage_tasks.py its stages."""
