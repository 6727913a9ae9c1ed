"""The main job, measured beside its bare costs in the same run."""
