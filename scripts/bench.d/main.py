"""Runs one comparison and prints it; see scripts/bench."""

import argparse
import datetime
import re
from pathlib import Path

import common
import fleet
import guest
import recover
import resync
import ship
import vault

COMPARISONS = {"guest": guest.compare, "ship": ship.compare, "resync": resync.compare,
               "fleet": fleet.compare, "recover": recover.compare, "vault": vault.compare}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "BENCHMARKS.md"


def put(name, text):
    """Replaces one comparison's part of the page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = PAGE.read_text()
    part = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if not part.search(page):
        raise SystemExit(f"{PAGE} has no part {begin}")
    PAGE.write_text(part.sub(lambda _: f"{begin}\n{text}\n{end}", page))
    print(f"\nwritten to {PAGE}")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("what", choices=sorted(COMPARISONS))
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--write", action="store_true", help="put it into docs/BENCHMARKS.md")
    parser.add_argument("--disks", type=int, help="disks of the fleet")
    parser.add_argument("--minutes", type=int, help="how long the fleet runs")
    parser.add_argument("--engine", default="auto", help="how the driver reads and writes")
    options = parser.parse_args()
    about = common.machine()
    with common.Work() as work:
        text = COMPARISONS[options.what](work, options)
    rounds = {"fleet": "one run", "resync": f"medians of {resync.ROUNDS} rounds",
              "vault": "medians of 3 rounds"}
    rounds = rounds.get(options.what, "medians of 5 rounds")
    rounds = "one short round: no figures to quote" if options.quick else rounds
    text = f"{datetime.date.today()}, {about}; {rounds}.\n\n{text}"
    print("\n" + text)
    if options.write:
        put(options.what, text)


main()
