"""A dictionary in the order of a reader: any case, digits by their value; a put renames."""

import importlib
import re
import sys


def natural(key):
    parts = re.split(rb"(\d+)", key.lower())
    return [(0, int(part), b"") if part.isdigit() else (1, 0, part) for part in parts if part]


def compare(a, b):
    a, b = natural(a), natural(b)
    return (a > b) - (a < b)


def main(plyvel, path):
    options = {"comparator": compare, "comparator_name": b"natural"}
    with plyvel.DB(path, create_if_missing=True, **options) as db:
        words = [
            b"Chapter 10",
            b"chapter 9",
            b"Appendix",
            b"chapter 100",
            b"CHAPTER 1",
            b"index",
            b"Chapter 2b",
            b"chapter 2a",
        ]
        for word in words:
            db.put(word, word.title())
        with db.write_batch() as batch:
            for number in range(300):
                batch.put(b"figure %d" % (number * 7 % 300), b"%d" % number)
            batch.delete(b"FIGURE 5")
        before = db.snapshot()
        db.put(b"APPENDIX", b"renamed")
        db.delete(b"Index")
        print(list(db.iterator(stop=b"figure 3")))
        print([key for key, _ in before.iterator(stop=b"figure 3")])
        print(list(db.iterator(start=b"CHAPTER 2", stop=b"chapter 10", include_stop=True, include_value=False)))
        print(list(db.iterator(reverse=True, start=b"figure 295", include_value=False)))
        print(db.get(b"figure 5"), db.get(b"Figure 006"), before.get(b"INDEX"))
        chapters = db.prefixed_db(b"chapter ")
        print(list(chapters), chapters.get(b"2A"))
        it = db.iterator(include_value=False)
        it.seek(b"figure 150")
        print([next(it) for _ in range(3)], it.prev(), it.prev())
        it.close()
        db.compact_range()
        print(sum(1 for _ in db))
        before.close()
    for wrong in ({}, {"comparator": compare, "comparator_name": b"unnatural"}):
        try:
            plyvel.DB(path, **wrong)
        except plyvel.Error as error:
            print("does not match existing comparator" in str(error))
    plyvel.repair_db(path, **options)
    with plyvel.DB(path, **options) as db:
        print(sum(1 for _ in db), db.get(b"appendix"))


if __name__ == "__main__":
    main(importlib.import_module(sys.argv[1]), sys.argv[2])
