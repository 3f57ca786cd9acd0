"""A small log that snapshots are taken of: what its columns mean, some rows, and rows as CSV."""

NAMES = ["user", "item", "time"]
SCHEMA = {"interactions": {"user": "user", "item": "item", "time": "time"}}

A, B, C, D = ("u1", "a", "1"), ("u2", "b", "2"), ("u3", "c", "3"), ("u4", "d", "4")


def csv_of(rows, header=True):
    return "".join(f"{line}\n" for line in ([",".join(NAMES)] if header else []) + [",".join(row) for row in rows])
