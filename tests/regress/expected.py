"""What is known to fail through the port, and whether that is still true."""

import os
import tomllib

KINDS = {"design", "gap"}
WHEN = {"always", "sometimes"}


class Expected:
    """The list of expected_failures.toml: for each name its kind, when it fails, and why."""

    def __init__(self):
        path = os.path.join(os.path.dirname(__file__), "expected_failures.toml")
        with open(path, "rb") as file:
            self.entries = tomllib.load(file)
        for name, entry in self.entries.items():
            if set(entry) != {"kind", "fails", "why"} or entry["kind"] not in KINDS or entry["fails"] not in WHEN:
                raise ValueError(f"{path}: {name} needs kind ({KINDS}), fails ({WHEN}) and why")

    def complaints(self, direct, through):
        """What the outcomes of a run say against the list; nothing if they agree."""
        found = [f"{name} fails directly: the arrangement is at fault" for name, passed in direct.items() if not passed]
        for name, passed in through.items():
            entry = self.entries.get(name)
            if not passed and not entry:
                found.append(f"{name} fails through Halyard and is not explained in expected_failures.toml")
            elif passed and entry and entry["fails"] == "always":
                found.append(f"{name} passes through Halyard, so its line in expected_failures.toml has to go")
        found += [f"{name} in expected_failures.toml is no test" for name in self.entries if name not in through]
        return found
