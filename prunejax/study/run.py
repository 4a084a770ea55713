"""A study: config -> programs -> chunks of runs -> records and report."""

import dataclasses
import errno
import functools
import html
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from prunejax import report
from prunejax.cluster import distributed
from prunejax.configs import default
from prunejax.errors import ConfigError, RecordError, WorkdirError
from prunejax.record import ledger, remote, sinks
from prunejax.record.checkpoint import Checkpoints
from prunejax.record.directory import SharedDirectory
from prunejax.record.environment import environment
from prunejax.record.progress import Progress
from prunejax.record.times import Times
from prunejax.study.devices import layout
from prunejax.study.devices.arrangement import Arrangement, regrouped
from prunejax.study.loop import connecting, measure_check, measuring, saving
from prunejax.study.loop import page as page_lib
from prunejax.study.loop import rows as rows_lib
from prunejax.study.loop.chunk import Chunk, Policy
from prunejax.study.planning import attributes, plan
from prunejax.study.planning.plan import Batch, Member
from prunejax.study.settings import config as config_lib
from prunejax.study.settings import entries, lineage
from prunejax.study.settings.config import Variant
from prunejax.study.settings.pairs import pairs
from prunejax.study.settings.probing import Probing
from prunejax.study.settings.resolved import resolve
from prunejax.system import config_file as config_file_lib
from prunejax.system.files import expand
from prunejax.system.readable import judging


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a study's records are. As the last line of a notebook's cell it shows the page."""

    workdir: Path
    report: Path | None  # None: of a shard without runs
    already_finished: bool
    rebuilt: bool = False  # its report had been lost

    def _repr_html_(self) -> str:
        """The page in a frame of its own, whose style touches nothing of the notebook's."""
        if self.report is None:
            return f"<p>{html.escape(repr(self))}</p>"
        page = html.escape(self.report.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" style="width:100%;height:50em;border:0"></iframe>'


def judged(config: ConfigDict, defaults: ConfigDict) -> tuple[list[Variant], list[Batch]]:
    """Arms and programs of a study: all that its config asks for is there and fits together.

    Whether the devices suffice is judged where they are, by `run`.

    Raises:
      ConfigError: it is not, or does not.
    """
    with judging():  # data sets, models and registries raise errors of their own
        entries.check()
        arms = config_lib.variants(config, defaults)
        settings = arms[0].settings
        report.check(settings.report, [arm.label for arm in arms])
        sinks.check(settings.record.sinks)
        batches = plan.build(arms)
        measure_check.check(settings, batches)
        connecting.check(settings, batches)
        for arm in arms:
            layout.check(arm.settings)
    return arms, batches


def shard(
    members: Sequence[Sequence[Member]], index: int, count: int, lines: Sequence[str] = ()
) -> list[list[Member]]:
    """Of the members of each batch those of shard `index` (from 0) of `count`.

    Runs go with those that they need (twins, tickets), whichever batch these are in, and with those
    to which lines are drawn (`lines`: `connect.pairs`); with more shards than there are such
    families some are empty.
    """
    every = [m for batch in members for m in batch]
    needs = {m.run: set(m.needs) for m in every}
    for pair in pairs(lines, [(m.variant, m.seed, m.run) for m in every]):
        needs[pair.a].add(pair.b)
    family = lineage.families(needs)
    mine = set(sorted(set(family.values()))[index::count])  # sorted: every shard deals alike
    return [[m for m in batch if family[m.run] in mine] for batch in members]


def run(
    config: ConfigDict,
    workdir: str | os.PathLike[str],
    defaults: ConfigDict | None = None,
    *,
    shard_of: tuple[int, int] = (1, 1),
    stop_requested: Callable[[], bool] = lambda: False,
    quiet: bool = False,
    command: str = "",
    config_file: str | None = None,
) -> Result:
    """Runs a study to its end, or continues it, and writes its report.

    Args:
      config: what a config file gives (`get_config`), overrides applied.
      workdir: the run directory, or a URL (`record.remote`); with shards, `workdir/shards/i-of-n`
        is used.
      defaults: `configs/default.py`'s config, which says what fields there are; None: that.
      shard_of: (i, n), from 1: train only the i-th of n parts of the members.
      stop_requested: asked between calls; True saves a checkpoint and raises Interrupted.
      quiet: print nothing.
      command: what starts this study, but for its workdir: told in the report.
      config_file: where `config` is from; kept where that file registered things of its own.

    Raises:
      ValueError (ConfigError, WorkdirError, ...): the request cannot be carried out; nothing was
        written over.
      RecordError: a record cannot be written, or the run directory went away.
      UnreadableError: an example of a streamed set cannot be used.
    """
    defaults = default.get_config() if defaults is None else defaults
    index, count = shard_of
    own = remote.part(index, count)
    try:
        workdir = expand(workdir)
    except ValueError as error:
        raise ConfigError(f"workdir {error}") from None
    mirror = remote.mirror(workdir, index, count, jax.process_count())
    arms, batches = judged(config, defaults)
    settings = arms[0].settings
    origin = config_file_lib.describe(config_file) if config_file and entries.registered() else None
    for arm in arms:
        layout.check_devices(arm.settings)
    resolved = resolve(config, defaults, arms[0].label)
    if not distributed.same(repr((resolved, shard_of))):
        raise ConfigError(
            "the processes of this program were started with different configs or shards; give "
            "all of them the same command"
        )
    path = mirror.fetch() if mirror else Path(workdir) / own
    mine = shard([b.members for b in batches], index - 1, count, settings.connect.pairs)
    with SharedDirectory.open(
        path,
        resolved,
        environment(),
        rows_lib.tables(arms, [b.program for b in batches]),
        ignore=("checkpoint", "population.memory_gib", "record"),  # no number depends on these
        mirror=mirror,
    ) as directory:
        if directory.finished:
            rebuilt = directory.on_main(functools.partial(page_lib.mend, empty=not any(mine)))
            directory.publish()
            return Result(path, path / ledger.PAGE if any(mine) else None, True, rebuilt)
        tested = {b.dataset.test_examples for b in batches}  # 0: arms have different ones
        directory.save_json(
            "study.json",
            {
                "variants": attributes.of_arms(arms, batches),
                "shard": f"{index}/{count}",
                "runs": [m.run for b in batches for m in b.members],
                "here": [m.run for members in mine for m in members],  # of this shard
                "test_examples": tested.pop() if len(tested) == 1 else 0,
                "notes": _notes(batches),
                "command": command,
                "classes": attributes.of_classes(batches),
                config_file_lib.KEY: origin,
            },
        )
        try:
            _train(batches, mine, settings, directory, stop_requested, quiet)
            page = directory.on_main(functools.partial(page_lib.build, empty=not any(mine)))
            directory.publish()
        except ConfigError:  # the devices cannot hold the members
            directory.discard()
            raise
        except Exception as error:  # of many kinds, from several layers below
            if getattr(error, "errno", 0) != errno.ENOENT and (path / "config.json").exists():
                raise
            raise RecordError(
                errno.ENOENT,
                f"run directory {path}, or a file in it, was removed or moved while its study ran. "
                "Put it back to continue, or give the same command again to start over",
            ) from error
    return Result(path, page, False)


def _notes(batches: Sequence[Batch]) -> list[str]:
    return list(dict.fromkeys(note for b in batches for note in b.notes))


def _verify(directory: SharedDirectory) -> None:
    """Checks what an interrupted study left: the tables as its last chunk of runs found them, and
    the files of the runs that have ended.

    Raises WorkdirError: rows or files are gone or were changed, or what tells so is not there.
    """
    name = "progress.json"
    known = directory.load_json(name)
    what = "is not what this program writes: it was changed"
    if known is None:
        what = "is missing, and there are rows already"
        if not any(directory.rows(table) for table in directory.tables):
            return
    elif ledger.is_marks(known, directory.tables):
        directory.verify(known["sizes"], known.get("digests", {}))
        saving.verify(directory, known.get("chunk", 0))
        return
    raise WorkdirError(
        f"{directory.path / name} {what}. Restore it, or start over in a new workdir"
    )


def _train(
    batches: Sequence[Batch], mine: Sequence[Sequence[Member]], settings: ConfigDict,
    directory: SharedDirectory, stop_requested: Callable[[], bool], quiet: bool,
) -> None:  # fmt: skip
    """Trains every chunk of the members `mine` of each batch that has no rows in runs.csv yet."""
    steps = [b.program.steps_per_epoch * b.program.epochs for b in batches]
    _verify(directory)
    finished = {row["run"] for row in directory.rows("runs")}  # its row is a run's last write
    progress = Progress(
        sum(len(members) * n for members, n in zip(mine, steps, strict=True)),
        quiet=quiet or not distributed.is_main(),
    )
    for note in _notes(batches):
        progress.message(note)
    if directory.mirror is not None:
        progress.message(f"{directory.mirror.url}: worked on in {directory.path}")
    c = settings.checkpoint
    policy = Policy(c.every_epochs, c.every_minutes, c.at_events, c.keep, stop_requested)
    arrangement = Arrangement(batches, mine, settings, directory, progress)
    measure = functools.cache(
        lambda b: measuring.Hook(batches[b], settings, directory, progress.message)
    )
    number = 0
    tracking = sinks.Tracking(directory.path, settings.record.sinks, progress.message)
    times = Times(directory, jax.device_count())
    for b, wave in arrangement.order:  # a wave: runs of batch b that need none of each other
        for part, size in arrangement.chunks(b, wave):
            done = [m.run for m in part if m.run in finished]
            if len(done) == len(part):
                progress.advance(steps[b] * len(part), "finished before", timed=False)
                number += 1
                continue
            begun = (directory.load_json("progress.json") or {}).get("chunk")
            if done and begun != number:  # else the rows of an end in the middle: dropped below
                raise regrouped(directory, done[0], part[-1].run)
            chunk = Chunk(
                index=number,
                members=part,
                size=size,
                population=arrangement.population(b),
                directory=directory,
                checkpoints=Checkpoints(directory.path / "checkpoints" / f"chunk-{number}", c.keep),
                policy=policy,
                progress=progress,
                measure=measure(b) if settings.measures.names else None,
                measure_epochs=frozenset(settings.measures.epochs),
                every=settings.evaluate_every,
                probing=Probing(
                    batches[b].program.probes,
                    settings.probes.at,
                    directory,
                    batches[b].dataset.test_examples,
                ),
            )
            number += 1
            if begun != chunk.index:  # tables as they are before its first row
                directory.save_json("progress.json", {"chunk": chunk.index, **directory.marks()})
            arrangement.foresee(b)
            with times.counted():
                chunk.run()
            directory.save_json("progress.json", {"chunk": number, **directory.marks()})
            chunk.checkpoints.clear()  # after it is on record that the chunk is done
            directory.publish(number)
            distributed.on_main(tracking.send)
    distributed.on_main(tracking.send)  # runs that an earlier start did not get to send
    connecting.close(batches, mine, settings, directory, progress.message)
    progress.close("done")
