"""Where pictures and labels are found: folders, tables, sets with a name."""
