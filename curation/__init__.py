"""Raw video to tables and sharded tars."""
