"""The runners of this project, and which of them can run a bundle. A new runner is one entry of RUNNERS."""

from __future__ import annotations

from dataclasses import dataclass

from berxit.runtime.bundle import Manifest
from berxit.runtime.policies.registry import BUILT_IN


@dataclass(frozen=True)
class NamedRunner:
    """A program or library that runs bundles."""

    name: str
    targets: tuple[str, ...]
    """Targets whose bundles it runs."""
    user_criteria: bool = False
    """True if an app can register its own exit criteria."""

    def problem(self, manifest: Manifest) -> str | None:
        """Why it cannot run the bundle; None if it can."""
        if manifest.target not in self.targets:
            return f"runs bundles for {' and '.join(self.targets)}"
        if manifest.policy.criterion not in BUILT_IN and not self.user_criteria:
            return f"does not know the criterion {manifest.policy.criterion}"
        return None


RUNNERS = (
    NamedRunner("Python", ("onnxruntime", "tensorrt", "coreml"), user_criteria=True),
    NamedRunner("C", ("onnxruntime",)),
    NamedRunner("Java", ("onnxruntime",)),
    NamedRunner("JavaScript", ("onnxruntime",)),
    NamedRunner("Swift", ("coreml",)),
)


def usable(manifest: Manifest) -> str:
    """The runners that can run the bundle, and why the others cannot, in one line."""
    problems = {runner.name: runner.problem(manifest) for runner in RUNNERS}
    fitting = [name for name, problem in problems.items() if problem is None]
    others = [f"{name} {problem}" for name, problem in problems.items() if problem is not None]
    return ", ".join(fitting) + "".join(f"; {other}" for other in others)
