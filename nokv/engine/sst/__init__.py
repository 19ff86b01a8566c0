"""Sorted string tables: building, opening, export and ingest of external tables. Read `table.py` first."""
