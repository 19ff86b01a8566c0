"""Write-ahead log: segments, typed records, retention by name, recovery. Read `segment.py` first."""
