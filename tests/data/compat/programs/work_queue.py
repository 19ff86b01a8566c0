"""A persistent queue with priorities, workers on threads, and a cursor that goes both ways."""

import importlib
import struct
import sys
import threading


class Queue:
    def __init__(self, plyvel, path):
        self.plyvel = plyvel
        self.db = plyvel.DB(path, create_if_missing=True, error_if_exists=True)
        self.jobs = self.db.prefixed_db(b"q").prefixed_db(b"\xff/")
        self.lock = threading.Lock()
        self.tail = 0

    def push(self, priority, payload):
        with self.lock:
            self.tail += 1
            self.jobs.put(struct.pack(">BQ", priority, self.tail), payload, sync=self.tail % 50 == 0)

    def pop(self):
        with self.lock, self.jobs.iterator() as it:
            for key, value in it:
                self.jobs.delete(key)
                return key[0], value
        return None


def main(plyvel, path):
    queue = Queue(plyvel, path)
    pushers = [
        threading.Thread(target=lambda p=p: [queue.push(p, b"job %d of %d" % (n, p)) for n in range(100)])
        for p in range(4)
    ]
    for thread in pushers:
        thread.start()
    for thread in pushers:
        thread.join()
    taken, lock = [], threading.Lock()

    def work():
        while (job := queue.pop()) is not None:
            with lock:
                taken.append(job)

    workers = [threading.Thread(target=work) for _ in range(3)]
    first = [queue.pop() for _ in range(150)]
    print([priority for priority, _ in first].count(0), first[0][0], sorted(value for _, value in first)[:3])
    it = queue.jobs.iterator(include_value=False)
    it.seek(struct.pack(">B", 2))
    here = next(it)
    print(here[0], it.prev() == here, it.prev()[0], next(it)[0], next(it) == here)
    it.seek_to_stop()
    print(it.prev()[0])
    it.close()
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    print(len(taken), sorted(taken)[:2], sorted(taken)[-2:])
    raw = queue.db.raw_iterator()
    raw.seek_to_first()
    print(raw.valid())
    try:
        raw.key()
    except plyvel.IteratorInvalidError as error:
        print("nothing left", type(error).__mro__[1].__name__)
    queue.db.close()
    try:
        Queue(plyvel, path)
    except plyvel.Error as error:
        print("exists" in str(error))
    plyvel.repair_db(path)
    with plyvel.DB(path) as db:
        print(list(db))
    plyvel.destroy_db(path)
    try:
        plyvel.DB(path)
    except plyvel.Error as error:
        print("create_if_missing" in str(error))


if __name__ == "__main__":
    main(importlib.import_module(sys.argv[1]), sys.argv[2])
