"""Computes digits of pi for ever. pi.py FOLDER keeps them in FOLDER/digits; a second thread keeps FOLDER/progress.

With --check it says whether FOLDER/digits are the digits of pi, and nothing else.
"""

import os
import sys
import threading
import time


def digits():
    """The spigot of Jeremy Gibbons: all digits, one after the other, in whole numbers alone."""
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    while True:
        if 4 * q + r - t < n * t:
            yield n
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, l = q * k, (2 * q + r) * l, t * l, k + 1, (q * (7 * k + 2) + r * l) // (t * l), l + 2


def compute(folder, state):
    with open(os.path.join(folder, "digits"), "w", buffering=1) as file:
        for number, digit in enumerate(digits(), 1):
            file.write(f"{digit}\n")
            state["digits"] = number
            # Nobody wants a warm laptop for a demonstration.
            time.sleep(0.002)


def report(folder, state):
    start = time.monotonic()
    with open(os.path.join(folder, "progress"), "a", buffering=1) as file:
        while True:
            time.sleep(0.2)
            file.write(f"{time.monotonic() - start:.1f} s: {state['digits']} digits, process {os.getpid()}\n")


def check(folder):
    with open(os.path.join(folder, "digits")) as file:
        found = [int(line) for line in file if line.endswith("\n")]
    wrong = sum(1 for ours, theirs in zip(digits(), found) if ours != theirs)
    print(f"{len(found)} digits, {wrong} of them wrong")
    return 1 if wrong or not found else 0


def main():
    if sys.argv[1] == "--check":
        return check(sys.argv[2])
    state = {"digits": 0}
    for work in (compute, report):
        threading.Thread(target=work, args=(sys.argv[1], state), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
