"""Which files of a partition are worth merging, and why the others are left alone.

Pure: a plan follows from the files' names, sizes and times alone, whatever order they come in. Two regimes:

- **Open** partitions, which still grow, are compacted by size tiers (`by_tiers`): files of about one size are merged
  when there are enough of them, so that each byte is rewritten once per tier rather than once per run. What a merge
  would fill is planned together with it, and nothing is written twice.
- **Closed** partitions end as few files as their bytes allow (`as_few_as_possible`). That is paid once, so neither
  tiers nor ``min_files`` apply: two files that fit into one are merged, if that is worth it.

Planned again on its own result, a plan is empty, unless ``max_files`` or ``max_bytes`` cut it short or it splits files.
`again_at` says when time alone may give an empty plan something to merge (``docs/adr/008-size-tiered-compaction.md``).

A plan names files and gives reasons, and so takes a hundred times as long as the figures that a report wants of it.
For most partitions sums settle these; tests hold `outlook_of_facts` to what `plan_compaction` finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from datalake_assets.core.compaction.cost import PAYBACK_MONTHS, Estimate, Rewrite, estimate_of, is_worth_it
from datalake_assets.core.compaction.packing import (
    Bundle,
    as_few_as_possible,
    by_tiers,
    tier_bounds,
    tier_of,
    time_order,
)
from datalake_assets.core.facts import Outlook, PartitionFacts
from datalake_assets.core.files import DataFile, written_at
from datalake_assets.core.values import Value
from datalake_assets.core.wording import files_text, size_text, span_text
from datalake_assets.feed import Feed
from datalake_assets.settings import Environment

__all__ = [
    "CompactionGroup",
    "CompactionPlan",
    "CompactionRequest",
    "CompactionRules",
    "Estimate",
    "LeftAlone",
    "again_at",
    "outlook_of_facts",
    "outlook_of_plan",
    "plan_compaction",
    "rules_of",
]

#: Small files that an open partition must have, where the policy does not say; the profiles of the compaction issue.
MIN_FILES = {Environment.DEVELOPMENT: 3, Environment.STAGING: 15, Environment.PRODUCTION: 20}


class CompactionRequest(Value, frozen=True):
    """What one command or run asks for, over a feed's policy.

    Attributes:
        environment: Sets ``min_files`` where the policy doesn't.
        force: Merge whatever can be merged: no minimum of files or ages, no estimate.
        target_file_bytes: In place of the format's.
        max_files: In place of the policy's.
        memory_bytes: Of decoded rows held at once; says how many row groups are encoded at once.
        engine: Where files are rewritten, as settings name it.
    """

    environment: Environment = Environment.DEVELOPMENT
    force: bool = False
    target_file_bytes: int | None = None
    max_files: int | None = None
    memory_bytes: int = 384 << 20
    engine: str = "local"


class CompactionRules(Value, frozen=True):
    """A feed's `CompactionPolicy` with the installation's defaults and the request filled in."""

    target_file_bytes: int
    small_file_bytes: int
    min_files: int
    max_files: int
    max_bytes: int
    fan_in: int
    split_above_bytes: int
    min_file_age: timedelta
    min_partition_age: timedelta
    force: bool = False

    def must_wait(self, last_commit: datetime, *, now: datetime) -> bool:
        """Whether a partition that last changed then is left alone yet."""
        return not self.force and now - last_commit < self.min_partition_age


class CompactionGroup(Value, frozen=True):
    """Files that become one file (or, of a file that is too large, several).

    Attributes:
        files: In time order.
        reason: Why, for a person.
    """

    files: tuple[DataFile, ...]
    reason: str

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class LeftAlone:
    """A file that stays as it is, and why.

    Attributes:
        name: The file.
        reason: Why, for a person.
        unusable: No rewrite can take it as it is: it cannot be read, or fits no other. Somebody should look at it.
    """

    name: str
    reason: str
    unusable: bool = field(default=False, compare=False)


class CompactionPlan(Value, frozen=True):
    """What to merge in one partition.

    Attributes:
        groups: Files that are merged, in time order.
        left_alone: Every other file.
        estimate: What that costs and saves.
        again_at: When the passing of time alone may make another plan of the same files; None for never.
    """

    groups: tuple[CompactionGroup, ...]
    left_alone: tuple[LeftAlone, ...]
    estimate: Estimate
    again_at: datetime | None = None


def rules_of(feed: Feed, request: CompactionRequest) -> CompactionRules:
    """The rules that a feed is compacted by: what the request says, else the policy, else the environment.

    A threshold for small files that is larger than the target becomes half the target: at the target itself the result
    of every merge would count as small again.
    """
    policy = feed.compaction
    target = request.target_file_bytes or feed.format.target_file_size_bytes
    return CompactionRules(
        target_file_bytes=target,
        small_file_bytes=feed.small_file_bytes if feed.small_file_bytes <= target else target // 2,
        min_files=policy.min_files or MIN_FILES[request.environment],
        max_files=request.max_files or policy.max_files,
        max_bytes=policy.max_bytes,
        fan_in=policy.fan_in,
        split_above_bytes=int(policy.split_above * target),
        min_file_age=policy.min_file_age,
        min_partition_age=policy.min_partition_age,
        force=request.force,
    )


def plan_compaction(
    files: Sequence[DataFile],
    rules: CompactionRules,
    *,
    now: datetime,
    closed: bool,
    last_commit: datetime | None = None,
    excluded: Mapping[str, str] | None = None,
) -> CompactionPlan:
    """Plans the compaction of one partition.

    Args:
        files: All its committed files.
        rules: The feed's policy, resolved by `rules_of`.
        now: The store's time.
        closed: No more rows are expected: it should end as as few files as its bytes allow.
        last_commit: When the partition last changed; None if unknown.
        excluded: Files that must stay, by name, with the reason: unreadable ones, others' schemas.

    Returns:
        Groups in time order, and in it every other file once, with its reason, also in time order.
    """
    listed = sorted(files, key=time_order)
    unusable = dict(excluded or {})
    left = _set_aside(listed, rules, now=now, last_commit=last_commit) | unusable
    usable = [file for file in listed if file.name not in left]
    splits = [_split(file, rules) for file in usable if file.size_bytes > rules.target_file_bytes]
    merges: list[CompactionGroup] = []
    for part in sorted({file.part for file in usable}):
        mergeable = [file for file in usable if file.part == part and file.size_bytes <= rules.target_file_bytes]
        found, reasons = _merges(mergeable, rules, closed=closed)
        merges += found
        left |= reasons
    groups, cut = _within_limits([*merges, *splits], rules)
    left |= cut
    return CompactionPlan(
        groups=tuple(groups),
        left_alone=tuple(_left_alone(file, left, unusable) for file in listed if file.name in left),
        estimate=estimate_of([_rewrite(group, rules) for group in groups], files=len(listed)),
    )


def _left_alone(file: DataFile, reasons: Mapping[str, str], unusable: Mapping[str, str]) -> LeftAlone:
    return LeftAlone(file.name, reasons[file.name], file.name in unusable)


def _set_aside(
    files: Iterable[DataFile], rules: CompactionRules, *, now: datetime, last_commit: datetime | None
) -> dict[str, str]:
    """The files that no packing could use, by name, with the reason."""
    if last_commit is not None and rules.must_wait(last_commit, now=now):
        quiet = now - last_commit
        reason = f"the partition changed {span_text(quiet)} ago, {span_text(rules.min_partition_age)} are needed"
        return {file.name: reason for file in files}
    found = ((file.name, _too_young(file, rules, now) or _too_large(file, rules)) for file in files)
    return {name: reason for name, reason in found if reason}


def _too_young(file: DataFile, rules: CompactionRules, now: datetime) -> str:
    if rules.force or not rules.min_file_age:
        return ""
    written = written_at(file)
    if written is None or now - written >= rules.min_file_age:
        return ""
    return f"is {span_text(now - written)} old: younger than {span_text(rules.min_file_age)}"


def _too_large(file: DataFile, rules: CompactionRules) -> str:
    """Larger than the target, and not to be split."""
    size, target, split_above = file.size_bytes, rules.target_file_bytes, rules.split_above_bytes
    if size <= target or size > split_above > 0:
        return ""
    splitting = f"split only above {size_text(split_above)}" if split_above else "never split"
    return f"is {size_text(size)}: above {size_text(target)} and {splitting}"


def _split(file: DataFile, rules: CompactionRules) -> CompactionGroup:
    outputs, target = _outputs(file.size_bytes, rules), size_text(rules.target_file_bytes)
    return CompactionGroup((file,), f"is {size_text(file.size_bytes)}: split into {outputs} files of at most {target}")


def _merges(
    files: Sequence[DataFile], rules: CompactionRules, *, closed: bool
) -> tuple[list[CompactionGroup], dict[str, str]]:
    """Groups of files, none above the target, and the reasons of the files that are in none."""
    as_few = closed or rules.force
    small = sum(file.size_bytes < rules.small_file_bytes for file in files)
    if not as_few and small < rules.min_files:
        short = f"only {files_text(small, 'small ')}, {rules.min_files} are needed"
        return [], {file.name: _not_small(file, rules) or short for file in files}
    alone = sorted((Bundle.of(file) for file in files), key=Bundle.place)
    bundles, declined = _settled(alone, rules, as_few=as_few)
    tiers = Counter(tier_of(each.size_bytes, rules.fan_in) for each in bundles if _is_small(each, rules))
    groups, left = [], {}
    for bundle in bundles:
        if len(bundle.files) > 1:
            groups.append(CompactionGroup(bundle.files, _why_merged(bundle, rules, closed=closed)))
            continue
        file = bundle.files[0]
        reason = _why_alone(file, rules, bundles) if as_few else _why_waiting(file, rules, tiers)
        left[file.name] = declined.get(file.name, reason)
    return groups, left


def _settled(bundles: list[Bundle], rules: CompactionRules, *, as_few: bool) -> tuple[list[Bundle], dict[str, str]]:
    """Merges, and merges the results, until nothing is left to merge; with the reasons why merges were declined."""
    target, small = rules.target_file_bytes, rules.small_file_bytes
    at_least = min(rules.fan_in, rules.min_files)
    while True:
        if as_few:
            bins = as_few_as_possible(bundles, target, small_below=small)
        else:
            bins = by_tiers(bundles, target, small_below=small, fan_in=rules.fan_in, at_least=at_least)
        settled: list[Bundle] = []
        declined: dict[str, str] = {}
        for each in bins:
            if len(each) == 1 or rules.force or is_worth_it(_merge(each)):
                settled.append(Bundle.merged(each))
            else:
                settled += each
                declined |= dict.fromkeys((bundle.files[0].name for bundle in each), _not_worth(_merge(each)))
        if len(settled) == len(bundles):
            return bundles, declined
        bundles = sorted(settled, key=Bundle.place)


def _merge(bundles: Sequence[Bundle]) -> Rewrite:
    return Rewrite(len(bundles), 1, sum(bundle.size_bytes for bundle in bundles))


def _rewrite(group: CompactionGroup, rules: CompactionRules) -> Rewrite:
    return Rewrite(len(group.files), _outputs(group.size_bytes, rules), group.size_bytes)


def _outputs(size_bytes: int, rules: CompactionRules) -> int:
    return max(1, -(-size_bytes // rules.target_file_bytes))


def _within_limits(
    groups: Sequence[CompactionGroup], rules: CompactionRules
) -> tuple[list[CompactionGroup], dict[str, str]]:
    """What one run may do of ``groups``, cheapest per file less first; a group may be cut short, a split may not."""
    files_left, bytes_left = rules.max_files, rules.max_bytes
    reason = f"left for the next run: one takes at most {files_text(rules.max_files)} and {size_text(rules.max_bytes)}"
    taken: list[CompactionGroup] = []
    cut: dict[str, str] = {}
    for group in sorted(groups, key=_bytes_per_file_less):
        fitting = _prefix(group.files, files_left, bytes_left)
        if len(fitting) < min(2, len(group.files)):
            fitting = ()
        if fitting:
            part = CompactionGroup(fitting, group.reason)
            taken.append(part)
            files_left, bytes_left = files_left - len(fitting), bytes_left - part.size_bytes
        cut |= dict.fromkeys((file.name for file in group.files[len(fitting) :]), reason)
    return sorted(taken, key=lambda group: time_order(group.files[0])), cut


def _bytes_per_file_less(group: CompactionGroup) -> tuple[float, tuple[datetime, str]]:
    fewer = len(group.files) - 1
    return group.size_bytes / fewer if fewer else float("inf"), time_order(group.files[0])


def _prefix(files: tuple[DataFile, ...], max_files: int, max_bytes: int) -> tuple[DataFile, ...]:
    taken = 0
    for file in files[:max_files]:
        max_bytes -= file.size_bytes
        if max_bytes < 0:
            break
        taken += 1
    return files[:taken]


def _is_small(bundle: Bundle, rules: CompactionRules) -> bool:
    return bundle.size_bytes < rules.small_file_bytes


def _not_small(file: DataFile, rules: CompactionRules) -> str:
    if file.size_bytes < rules.small_file_bytes:
        return ""
    return f"is {size_text(file.size_bytes)}: not below {size_text(rules.small_file_bytes)}"


def _why_merged(bundle: Bundle, rules: CompactionRules, *, closed: bool) -> str:
    merged = f"{files_text(len(bundle.files))} of {size_text(bundle.size_bytes)} become one"
    if rules.force:
        return f"{merged}: forced"
    if closed:
        return f"{merged}: the partition is closed"
    return f"{merged}: size tiers with {min(rules.fan_in, rules.min_files)} or more files are merged"


def _why_alone(file: DataFile, rules: CompactionRules, bundles: Sequence[Bundle]) -> str:
    if len(bundles) == 1:
        return f"is {size_text(file.size_bytes)}: no other file to merge it with"
    return f"is {size_text(file.size_bytes)}: no other file fits beside it within {size_text(rules.target_file_bytes)}"


def _why_waiting(file: DataFile, rules: CompactionRules, tiers: Counter[int]) -> str:
    tier = tier_of(file.size_bytes, rules.fan_in)
    needed = min(rules.fan_in, rules.min_files)
    if file.size_bytes >= rules.small_file_bytes:
        return _not_small(file, rules)
    if tiers[tier] >= needed:
        target = size_text(rules.target_file_bytes)
        return f"is {size_text(file.size_bytes)}: no other file of its tier fits beside it within {target}"
    low, high = tier_bounds(tier, rules.fan_in)
    return f"tier of {size_text(low)} to {size_text(high)} has {files_text(tiers[tier])}, {needed} are needed"


def _not_worth(rewrite: Rewrite) -> str:
    size, fewer = size_text(rewrite.size_bytes), files_text(rewrite.files_before - 1)
    return f"not worth it: rewriting {size} for {fewer} less costs more than readers save in {PAYBACK_MONTHS} months"


def again_at(
    files: Sequence[DataFile],
    rules: CompactionRules,
    *,
    now: datetime,
    closes_at: datetime | None,
    last_commit: datetime | None,
) -> datetime | None:
    """The first time at which the passing of time alone may make another plan of the same files.

    Args:
        files: The files of the partition that can be read.
        rules: What they are merged by.
        now: The store's time.
        closes_at: When the partition closes; None if it never does, or always was.
        last_commit: When it last changed; None if unknown.

    Returns:
        None if nothing will change: fewer than two files could be merged, or none of them is too young or waits for the
        partition to close. Of several files that are too young the time of the youngest, so that one look does.
    """
    mergeable = [file for file in files if file.size_bytes <= rules.target_file_bytes]
    if len(mergeable) < 2:  # noqa: PLR2004  one file is no merge
        return None
    times = [] if closes_at is None else [closes_at]
    if last_commit is not None:
        times.append(last_commit + rules.min_partition_age)
    ages = [written + rules.min_file_age for file in mergeable if (written := written_at(file)) is not None]
    times += [max(ages)] if ages else []
    return min((time for time in times if time > now), default=None)


def outlook_of_plan(plan: CompactionPlan, *, small_below_bytes: int) -> Outlook:
    """The figures of a plan; files below ``small_below_bytes`` count as small."""
    merges = [file.size_bytes for group in plan.groups if len(group.files) > 1 for file in group.files]
    splits = [file.size_bytes for group in plan.groups if len(group.files) == 1 for file in group.files]
    return Outlook(
        files_after=plan.estimate.files_after,
        files_to_merge=len(merges),
        small_bytes_to_merge=sum(size for size in merges if size < small_below_bytes),
        files_to_split=len(splits),
        bytes_to_split=sum(splits),
        bytes_to_rewrite=plan.estimate.bytes_rewritten,
    )


def outlook_of_facts(
    facts: PartitionFacts,
    rules: CompactionRules,
    *,
    now: datetime,
    closed: bool,
    last_commit: datetime | None = None,
    all_usable: bool = True,
) -> Outlook | None:
    """The figures that a plan of these files would have; None where only `plan_compaction` can work them out.

    Args:
        facts: Of the partition; its small files are at least those of ``rules``.
        rules: As for `plan_compaction`.
        now: The store's time.
        closed: No more rows are expected.
        last_commit: When the partition last changed; None if unknown.
        all_usable: Whether none of the files must stay as it is.
    """
    as_few = closed or rules.force
    if not facts.files or (last_commit is not None and rules.must_wait(last_commit, now=now)):
        return Outlook(facts.files)
    if facts.largest_bytes > rules.target_file_bytes:
        return None
    fit_nowhere = (
        facts.size_bytes > (facts.files - 1) * rules.target_file_bytes
    )  # one file less could not hold the bytes
    if fit_nowhere or (not as_few and facts.small_files < rules.min_files):
        return Outlook(facts.files)
    if as_few and all_usable and _becomes_one_file(facts, rules):
        return Outlook(
            files_after=1,
            files_to_merge=facts.files,
            small_bytes_to_merge=facts.small_bytes,
            bytes_to_rewrite=facts.size_bytes,
        )
    return None


def _becomes_one_file(facts: PartitionFacts, rules: CompactionRules) -> bool:
    """Whether files that are all taken become one, in a partition that should have as few as its bytes allow."""
    return (
        facts.size_bytes <= rules.target_file_bytes
        and 1 < facts.files <= rules.max_files
        and facts.size_bytes <= rules.max_bytes
        and (rules.force or not rules.min_file_age)
        and (rules.force or is_worth_it(Rewrite(facts.files, 1, facts.size_bytes)))
    )
