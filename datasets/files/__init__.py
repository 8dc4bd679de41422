"""Files as people have them: their names, tables, picture formats; nothing here decodes."""
