"""plyvel 1.5's public surface over our engine: `import nokv.compat.plyvel as plyvel` runs an existing program.

Same verbs, semantics, exception classes and texts of the common errors; a closed handle is RuntimeError, as there;
comparators too (nokv/compat/order.py). What differs, all of it, is in docs/plyvel.md: the files (a LevelDB directory is
not read: export it and import it), figures of properties and sizes, and two answers of plyvel 1.5.1's iterators that
ours does not repeat. Options that tune LevelDB are checked as plyvel checks them; `write_buffer_size`, `lru_cache_size`
and `block_size` are passed on, `compression=None` too, the rest has no counterpart. A non-sync write survives the death
of the process, as there.

`write_batch(transaction=False)` in a `with` block writes even if the block raises: that is what plyvel does.
Source of the behaviour: plyvel's documentation, https://plyvel.readthedocs.io/en/latest/api.html, and plyvel itself.

Files: database (DB, PrefixedDB, Snapshot), iterators, batch, arguments, errors, sizes, directories. Read database.py
first.
"""

from __future__ import annotations

from nokv.compat.plyvel.batch import WriteBatch as WriteBatch
from nokv.compat.plyvel.database import DB
from nokv.compat.plyvel.database import PrefixedDB as PrefixedDB
from nokv.compat.plyvel.database import Snapshot as Snapshot
from nokv.compat.plyvel.directories import destroy_db, repair_db
from nokv.compat.plyvel.errors import CorruptionError, Error, IOError, IteratorInvalidError
from nokv.compat.plyvel.iterators import BaseIterator as BaseIterator
from nokv.compat.plyvel.iterators import Iterator as Iterator
from nokv.compat.plyvel.iterators import RawIterator as RawIterator

__all__ = ["DB", "CorruptionError", "Error", "IOError", "IteratorInvalidError", "destroy_db", "repair_db"]
__version__ = "1.5.1"
__leveldb_version__ = "1.22"
