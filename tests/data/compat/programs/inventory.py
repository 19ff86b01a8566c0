"""Stock of a shop: records under prefixes, an index by price, reports over ranges, a batch that fails."""

import json
import struct
import sys


def main(plyvel, path):
    db = plyvel.DB(
        path, create_if_missing=True, write_buffer_size=1 << 20, bloom_filter_bits=10, lru_cache_size=1 << 20
    )
    items, by_price = db.prefixed_db(b"item:"), db.prefixed_db(b"price:")

    def store(sku, name, cents):
        old = items.get(sku.encode())
        with db.write_batch(transaction=True) as batch:
            if old is not None:
                batch.delete(b"price:" + struct.pack(">I", json.loads(old)["cents"]) + sku.encode())
            batch.put(b"item:" + sku.encode(), json.dumps({"name": name, "cents": cents}).encode())
            batch.put(b"price:" + struct.pack(">I", cents) + sku.encode(), b"")

    for number in range(500):
        store(f"sku-{number:04}", f"thing {number}", number * 37 % 1000 + 1)
    before = db.snapshot()
    for number in range(0, 500, 7):
        store(f"sku-{number:04}", f"thing {number}, new", number * 53 % 1000 + 1)
    try:
        store("sku-0001", object(), 5)
    except TypeError as error:
        print("refused:", type(error).__name__)
    low, high = struct.pack(">I", 100), struct.pack(">I", 120)
    for key in by_price.iterator(start=low, stop=high, include_value=False):
        print(struct.unpack(">I", key[:4])[0], key[4:].decode())
    dearest = [key[4:].decode() for key in by_price.iterator(reverse=True, include_value=False)][:5]
    print("dearest:", dearest)
    changed = sum(before.get(b"item:" + key) != value for key, value in items)
    print("changed since:", changed, "of", sum(1 for _ in before.iterator(prefix=b"item:")))
    before.close()
    with items.iterator(include_key=False) as values:
        print("total:", sum(json.loads(value)["cents"] for value in values))
    for key in items.iterator(prefix=b"sku-04", include_value=False):
        items.delete(key)
    print("left:", sum(1 for _ in items), items.get(b"sku-0400", b"gone"))
    db.compact_range(start=b"item:", stop=b"item;")
    db.close()
    try:
        items.get(b"sku-0001")
    except RuntimeError as error:
        print("closed:", error)
    with plyvel.DB(path) as db:
        print("again:", sum(1 for _ in db), db.get(b"item:sku-0007"))


if __name__ == "__main__":
    import importlib

    main(importlib.import_module(sys.argv[1]), sys.argv[2])
