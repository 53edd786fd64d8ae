"""Adds up the results of a test run: meson's *.json and pytest's *.xml in one folder.

Prints every failed and skipped test with its reason, and last `N passed, N failed` (with skipped ones when there
are any). Exits with 1 when a test failed or none passed.
"""

import json
import pathlib
import sys
import xml.etree.ElementTree as xml
from typing import NamedTuple


class Result(NamedTuple):
    name: str
    outcome: str  # "passed", "failed" or "skipped"
    reason: str


def meson_results(path: pathlib.Path) -> list[Result]:
    results = []
    for line in path.read_text().splitlines():
        test = json.loads(line)
        outcome = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}.get(test["result"], "failed")
        said = (test.get("stdout", "") + test.get("stderr", "")).strip().splitlines()
        reason = "" if outcome == "passed" else test["result"].lower() if outcome == "failed" else said[-1] if said else ""
        results.append(Result(f"{path.stem}: {test['name']}", outcome, reason))
    return results


def pytest_results(path: pathlib.Path) -> list[Result]:
    results = []
    for case in xml.parse(path).iter("testcase"):
        outcome, reason = "passed", ""
        for mark in case:
            if mark.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if mark.tag == "skipped" else "failed"
                reason = (mark.get("message") or "").splitlines()[0] if mark.get("message") else ""
        results.append(Result(f"{path.stem}: {case.get('classname')}.{case.get('name')}", outcome, reason))
    return results


def main(folder: pathlib.Path) -> int:
    results = [r for path in sorted(folder.glob("*.json")) for r in meson_results(path)]
    results += [r for path in sorted(folder.glob("*.xml")) for r in pytest_results(path)]
    for outcome in ("skipped", "failed"):
        for result in results:
            if result.outcome == outcome:
                print(f"{outcome.upper()} {result.name}: {result.reason or 'no reason given'}")
    count = {o: sum(r.outcome == o for r in results) for o in ("passed", "failed", "skipped")}
    skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
    print(f"{count['passed']} passed, {count['failed']} failed{skipped}")
    return 0 if count["passed"] and not count["failed"] else 1


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))
