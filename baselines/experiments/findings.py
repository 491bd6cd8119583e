"""Verdicts: what an experiment claims to see, whether its numbers show it, and how it is told.

The statistics are in ``findings_estimates`` (means over seeds, power laws), ``findings_ranks``
(trends, rank correlations), ``findings_curves`` (plateaus), ``findings_modes`` (bimodality) and
``findings_phases`` (transitions, phases); their public names are here, too. All are functions of
arrays, one number per run, and none forces an answer: True, False, or None where the runs are too
few.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from baselines.experiments.findings_curves import Drop as Drop
from baselines.experiments.findings_curves import Plateau as Plateau
from baselines.experiments.findings_curves import length_ratio as length_ratio
from baselines.experiments.findings_curves import median_length as median_length
from baselines.experiments.findings_curves import median_sharpness as median_sharpness
from baselines.experiments.findings_curves import plateau as plateau
from baselines.experiments.findings_curves import sharpness as sharpness
from baselines.experiments.findings_estimates import Estimate as Estimate
from baselines.experiments.findings_estimates import PowerLaw as PowerLaw
from baselines.experiments.findings_estimates import difference as difference
from baselines.experiments.findings_estimates import mean_over_seeds as mean_over_seeds
from baselines.experiments.findings_estimates import power_law as power_law
from baselines.experiments.findings_estimates import ratio as ratio
from baselines.experiments.findings_modes import Bimodality as Bimodality
from baselines.experiments.findings_modes import bimodalities as bimodalities
from baselines.experiments.findings_modes import bimodality as bimodality
from baselines.experiments.findings_phases import Boundary as Boundary
from baselines.experiments.findings_phases import Phases as Phases
from baselines.experiments.findings_phases import Transition as Transition
from baselines.experiments.findings_phases import phases as phases
from baselines.experiments.findings_phases import transition as transition
from baselines.experiments.findings_ranks import Predictors as Predictors
from baselines.experiments.findings_ranks import Trend as Trend
from baselines.experiments.findings_ranks import rank_correlation as rank_correlation
from baselines.experiments.findings_ranks import stronger_predictor as stronger_predictor
from baselines.experiments.findings_ranks import trend as trend

Seen = Literal["seen", "in part", "not seen", "undecided"]

_MARKS = {True: "✓", False: "✗", None: "?"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One thing that a figure is said to show.

    Attributes:
        text: What, as one line without a full stop.
        holds: True or False if the runs decide it, None if they do not.
        estimate: The number that decides it, if there is one.
        detail: What else the reader should know, on one line.
    """

    text: str
    holds: bool | None
    estimate: Estimate | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        for name in ("text", "detail"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value.splitlines()) > 1:
                raise ValueError(f"{name} of a claim must be one line, got {value!r}")
        if not self.text:
            raise ValueError("a claim needs a text")
        if not (self.holds is None or isinstance(self.holds, bool)):
            raise ValueError(f"holds must be True, False or None, got {self.holds!r}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        estimate = None if self.estimate is None else self.estimate.to_dict()
        return dataclasses.asdict(self) | {"estimate": estimate}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Claim":
        """What ``to_dict`` wrote.

        Raises:
            ValueError: If fields are missing, unknown or of another kind.
        """
        _check_fields("claim", values, cls)
        estimate = values["estimate"]
        return cls(
            text=values["text"],
            holds=values["holds"],
            estimate=None if estimate is None else Estimate.from_dict(estimate),
            detail=values["detail"],
        )

    def to_markdown(self) -> str:
        """One item of a list: mark, text, number, detail."""
        after = [str(self.estimate)] if self.estimate is not None else []
        after += [self.detail] if self.detail else []
        told = f"{self.text}: {'; '.join(after)}" if after else self.text
        return f"- {_MARKS[self.holds]} {told}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an experiment's runs show of what its figure claims.

    Attributes:
        claims: At least one.
    """

    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        if not self.claims:
            raise ValueError("a verdict needs at least one claim")

    @property
    def seen(self) -> Seen:
        """``seen`` if all claims hold, ``in part`` if some do, ``not seen`` if all fail.

        ``undecided`` if none is known to hold and one is not decided: it might.
        """
        answers = {claim.holds for claim in self.claims}
        if answers == {True}:
            return "seen"
        if True in answers:
            return "in part"
        return "undecided" if None in answers else "not seen"

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``seen`` is written for readers and checked when read."""
        return {"seen": self.seen, "claims": [claim.to_dict() for claim in self.claims]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Verdict":
        """What ``to_dict`` wrote.

        Raises:
            ValueError: If fields are missing, unknown or of another kind, or ``seen`` is not what
                the claims say.
        """
        if sorted(values) != ["claims", "seen"]:
            raise ValueError(f"a verdict has the fields claims and seen, got {sorted(values)}")
        found = cls(tuple(Claim.from_dict(claim) for claim in values["claims"]))
        if found.seen != values["seen"]:
            raise ValueError(f"seen is {values['seen']!r}, but its claims say {found.seen!r}")
        return found

    def to_markdown(self) -> str:
        """The verdict and a list of its claims: ✓ holds, ✗ fails, ? undecided."""
        lines = [f"**{self.seen.capitalize()}**", "", *(c.to_markdown() for c in self.claims)]
        return "\n".join(lines) + "\n"


def _check_fields(what: str, values: Mapping[str, Any], cls: type[Any]) -> None:
    names = [field.name for field in dataclasses.fields(cls)]
    if sorted(values) != sorted(names):
        raise ValueError(f"a {what} has the fields {names}, got {sorted(values)}")
