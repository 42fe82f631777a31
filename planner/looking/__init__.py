"""Looking at plans: show, simulate, diff, export. Nothing here builds one."""
