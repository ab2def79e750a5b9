"""Verdicts per point: how they become a report, and how the parts of an evaluation merge."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt

from torch import Tensor

from core.checkpoint import verdict_versions
from core.evaluation.checks import doubts_from_square
from core.schema.catalog import NORMS, Norm
from core.schema.errors import BadInput
from core.schema.events import AttackRecord, Flag, Part, Rate, Report, Reports
from core.schema.protocols import Engine, Protocol


def digits(right: Tensor) -> str:
    """Write verdicts (points,) as a string: 1 where the model is right, 0 where it is not."""
    return "".join("01"[verdict] for verdict in right.tolist())


def rate(count: int, total: int) -> Rate:
    """Turn a count into a share with its 95 % score interval (Wilson 1927)."""
    z = 1.959964
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = z / (1 + z * z / total) * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # The share itself, where rounding would leave it outside its own interval.
    low = max(0.0, centre - spread) if count else 0.0
    high = min(1.0, centre + spread) if count < total else 1.0
    return Rate(value=share, count=count, total=total, low=low, high=high)


def report(
    *,
    protocol: Protocol,
    engine: Engine,
    seed: int,
    batch_size: int,
    eps: dict[Norm, float],
    clean: str,
    robust: dict[Norm, str],
    records: Sequence[AttackRecord],
    flags: Iterable[Flag],
    seconds: float,
    part: Part | None = None,
) -> Report:
    """Sum up verdicts: clean, and robust per norm, one digit a point. A point counts for the union if all are 1."""
    points = len(clean)
    union = "".join("01"["0" not in verdicts] for verdicts in zip(*robust.values(), strict=True))
    return Report(
        protocol=protocol,
        engine=engine,
        examples=points,
        seed=seed,
        batch_size=batch_size,
        eps=eps,
        clean=rate(clean.count("1"), points),
        robust={norm: rate(verdicts.count("1"), points) for norm, verdicts in robust.items()},
        union=rate(union.count("1"), points),
        average=sum(verdicts.count("1") for verdicts in robust.values()) / (len(robust) * points),
        attacks=tuple(records),
        flags=(*flags, *doubts_from_square(records, points)),
        verdicts={"clean": clean, **robust, "union": union},
        seconds=seconds,
        part=part,
    )


def merge(parts: Sequence[Reports]) -> Reports:
    """Put the reports of all parts of one evaluation together: what the whole would have reported.

    Raises BadInput where parts are missing, come twice, or are not of one evaluation.
    """
    found = sorted(
        ((reports.after.part, reports.after, reports) for reports in parts if reports.after and reports.after.part),
        key=lambda one: one[0].first,
    )
    if len(found) < len(parts) or not found:
        raise BadInput(
            "one of these is not a part of an evaluation",
            hint="give the reports of: python -m core evaluate ... --shard I/N",
            field="merge",
        )
    _check_parts([part for part, _, _ in found])
    first = found[0][2]
    for _, _, other in found[1:]:
        if _identity(other) != _identity(first):
            raise BadInput(
                "these are parts of different evaluations: spec, model, data or versions differ",
                hint="run all shards with the same spec, model, data, version of Temper and release of torch; the "
                "devices may differ",
                field="merge",
            )
    merged = _merged([report for _, report, _ in found])
    return Reports(before=None, after=merged, run=first.run)


def _check_parts(parts: Sequence[Part]) -> None:
    count = parts[0].count
    missing = sorted(set(range(1, count + 1)) - {part.index for part in parts})
    if missing or len(parts) != count or {part.count for part in parts} != {count}:
        told = f"missing: {', '.join(f'{index}/{count}' for index in missing)}" if missing else "some come twice"
        raise BadInput(
            f"{len(parts)} reports do not make one evaluation of {count} shards; {told}",
            hint="give the report of each shard once",
            field="merge",
        )


def _identity(reports: Reports) -> tuple[object, ...]:
    """What all parts of one evaluation have in common."""
    assert reports.after
    run = reports.run
    known = (run.spec, run.base_sha256, run.data_sha256, verdict_versions(run.versions)) if run else ()
    after = reports.after
    return (*known, after.protocol, after.engine, after.seed, after.batch_size, after.eps)


def _merged(parts: Sequence[Report]) -> Report:
    first = parts[0]
    assert all(a.part and b.part and a.part.first + a.examples == b.part.first for a, b in pairwise(parts))
    return report(
        protocol=first.protocol,
        engine=first.engine,
        seed=first.seed,
        batch_size=first.batch_size,
        eps=first.eps,
        clean="".join(part.verdicts["clean"] for part in parts),
        robust={norm: "".join(part.verdicts[norm] for part in parts) for norm in NORMS if norm in first.eps},
        records=[_sum(records) for records in zip(*(part.attacks for part in parts), strict=True)],
        # What Square says is judged anew for the whole; the rest is looked for on the first points alone.
        flags=[flag for part in parts for flag in part.flags if flag.code != "square_improves"],
        seconds=sum(part.seconds for part in parts),
    )


def _sum(records: Sequence[AttackRecord]) -> AttackRecord:
    return AttackRecord(
        norm=records[0].norm,
        attack=records[0].attack,
        attacked=sum(record.attacked for record in records),
        robust=sum(record.robust for record in records),
        seconds=sum(record.seconds for record in records),
    )
