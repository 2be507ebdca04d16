"""Run folders: settings, checkpoints from which a run resumes, learning curve, results.

A run writes into a folder of its own::

    settings.json     what was asked for; another run cannot move in
    starts.json       command, commit, date and versions of every start
    data.json         checksums of the data, where a run keeps to them
    checkpoints/      the state after the last epoch, and the best one on validation tasks; within
                      an epoch, that at which Ctrl-C ended the process
    history.csv       a line per epoch
    tensorboard/      event files
    results.json      written last: the numbers, and what they were made with; earlier ones, of
                      a shorter run or of another test, stay as results-1.json and so on

Every file is written under another name and then renamed, so that it is whole or not there. A
run that was interrupted continues after its last checkpoint when the same command is given again,
bit for bit, since episode i of a seed is always the same and a checkpoint holds weights, optimizer
and random state. A folder belongs to one process at a time.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import keras_maml
from experiments.shared.checkpoint import Checkpoint
from experiments.shared.command_line import as_typed
from experiments.shared.training_clock import TrainingClock
from keras_maml.files import TEMPORARY, lock, read_csv, remove_leftovers, write_json
from keras_maml.validation import check_count

LENGTHS = {"iterations", "baseline_iterations"}
ASIDE = re.compile(r"results-(\d+)\.json")
# What a run leaves that only measures: it can be made again, where a training would be lost.
RECORDS = re.compile(rf"(settings|starts|data|results)\.json|{ASIDE.pattern}|results\.txt")
PACKAGES = ("tensorflow", "keras", "numpy", "tensorflow-datasets")


class Run:
    """A run folder, kept from other processes as long as this object lives.

    Args:
        folder: The folder; created if need be.
        settings: A dataclass, everything the result depends on.
        data: Checksums of the data by name, such as that of a split; a run goes on with no other
            data than it began with.
        workers: The processes that train together, by default this one. Worker 0 reads and writes
            the folder, each of the others one of its own that is gone afterwards.
        overwrite: Whether the `RECORDS` of an earlier run with settings of the same names are
            removed first.

    Raises:
        FileExistsError: The folder holds something else than a run of these settings (a run of
            fewer ``methods``, ``algorithms`` or ``seeds`` is continued, and one with other settings
            named ``test_...`` or ``target_...`` is tested again; one of other ``iterations`` goes
            on or ends earlier, unless more are done, or its last ``cooldown_iterations`` or the
            way to ``final_max_kl`` have begun; and nothing but `RECORDS` is overwritten).
        BlockingIOError: Another run is using the folder.
        ValueError: The data are not those that the run began with.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        settings: Any,
        data: dict[str, str] | None = None,
        workers: keras_maml.Workers | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.workers = workers or keras_maml.Workers()
        if not self.is_first:
            folder = tempfile.mkdtemp()
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.folder = pathlib.Path(folder)
        self.settings = as_json(settings)
        self._defaults = defaults_of(settings)
        self.folder.mkdir(parents=True, exist_ok=True)
        unlock = weakref.finalize(self, lock(self.folder))
        try:
            if overwrite:
                self._make_room()
            is_new = self._move_in(data)
        except BaseException:
            unlock()
            raise
        self._starts = [] if is_new else self._read_starts()
        self._noted = False
        if self.results is None:
            self._note_start()

    def _make_room(self) -> None:
        """Removes the records of a run of the same kind, and refuses to remove anything else."""
        path = self.folder / "settings.json"
        if not path.exists():
            return
        names = {path.name for path in self.folder.iterdir()}
        other = {n for n in names if not (RECORDS.fullmatch(n) or n.startswith(TEMPORARY))}
        try:
            found = self._defaults | json.loads(path.read_text())
            other |= found.keys() ^ self.settings.keys()
        except ValueError:
            other.add("settings.json, which cannot be read")
        if other:
            raise FileExistsError(
                f"{self.folder} holds more than the records of a run with settings of these names "
                f"({', '.join(sorted(other))}), and is not overwritten. Choose another --output, "
                "or remove the folder."
            )
        for name in sorted(names, key=path.name.__eq__):  # the settings last: they make it a run
            (self.folder / name).unlink()

    def _move_in(self, data: dict[str, str] | None) -> bool:
        """Checks what the folder holds, writes settings and checksums; whether the run is new."""
        path = self.folder / "settings.json"
        is_new = not path.exists()
        if is_new:
            found = {path.name for path in self.folder.iterdir()} - {"starts.json"}
            if not all(name.startswith(TEMPORARY) for name in found):  # what a killed start leaves
                raise FileExistsError(
                    f"{self.folder} is not empty and holds no run. Choose another --output."
                )
            write_json(path, self.settings)
        # A setting that is newer than the run had its default.
        found = self._defaults | json.loads(path.read_text())
        changed = [
            f"{name}: {found.get(name)!r} there, {value!r} asked for"
            for name, value in self.settings.items()
            if not _continues(name, found.get(name), value)
        ] + [f"{name}: unknown here" for name in found if name not in self.settings]
        if changed:
            raise FileExistsError(
                f"{self.folder} holds a run with other settings ({'; '.join(changed)}). Choose "
                "another --output, or give the settings it was started with to continue it."
            )
        self._check_length(found)
        if data is not None:
            self._keep_to_data(data)
        write_json(path, self.settings)
        remove_leftovers(self.folder)
        return is_new

    def _check_length(self, found: dict[str, Any]) -> None:
        """Refuses another length than began, where what is done would have been different."""
        for name in LENGTHS & set(self.settings):
            there, asked = found[name], self.settings[name]
            if there == asked:
                continue
            done, since, what = self._iterations_done(), None, ""
            if self.settings.get("cooldown_iterations"):
                since = min(there, asked) - self.settings["cooldown_iterations"]
                what = "learning rate"
            elif self.settings.get("final_max_kl") is not None:
                since, what = 0, "max_kl"
            reason = ""
            if since is not None and done > since:
                falls = "has fallen" if there < asked else "would have fallen"
                reason = f" of {there} iterations whose {what} {falls} since iteration {since}"
            elif done <= asked or there < asked:
                continue
            raise FileExistsError(
                f"{self.folder} holds a run{reason}, and {done} are done: it cannot become one of "
                f"{asked}. Choose another --output."
            )

    def _iterations_done(self) -> int:
        """Returns how many iterations that part of the run has which has most."""
        histories = [*self.folder.rglob("history.csv")]
        parts = {self.folder, *(path.parent for path in histories)}
        ends = [rows[-1]["iterations"] for rows in map(read_csv, histories) if rows]
        each = self.settings["epoch_iterations"]
        return int(max([*ends, *(Checkpoint(part).steps_done(each) for part in parts)]))

    def _keep_to_data(self, checksums: dict[str, str]) -> None:
        """Notes what the data are when a run begins, and refuses others later."""
        path = self.folder / "data.json"
        if not path.exists():
            write_json(path, checksums)
        found = json.loads(path.read_text())
        changed = [name for name in checksums if checksums[name] != found.get(name)]
        if changed:
            raise ValueError(
                f"The data ({', '.join(changed)}) are not those that the run in {self.folder} "
                "began with. Give the data it was started with, or choose another --output."
            )

    def _read_starts(self) -> list[dict[str, Any]]:
        path, results = self.folder / "starts.json", self.folder / "results.json"
        if path.exists():
            return json.loads(path.read_text())
        # The run is older than the list: its results, if there are any, know its last start.
        known = json.loads(results.read_text()) if results.exists() else {}
        return [{name: known.get(name) for name in made_with()}]

    def _note_start(self) -> None:
        if not self._noted:
            self._starts.append(made_with())
            write_json(self.folder / "starts.json", self._starts)
            self._noted = True

    @property
    def is_first(self) -> bool:
        """Whether this is worker 0, who tests and reports."""
        return self.workers.index == 0

    def has_finished(self) -> bool:
        """Returns whether there are results; all workers have to ask."""
        return bool(self.workers.of_first(self.results is not None))

    @property
    def results(self) -> dict[str, Any] | None:
        """The results of a run that has finished; None before."""
        return results_of(self.folder, self.settings, self._defaults)

    def finish(self, results: Any, **extra: Any) -> dict[str, Any]:
        """Writes the results with what they were made with, and returns them.

        Args:
            results: The results.
            **extra: What else to keep.

        Returns:
            The content of ``results.json``: ``command``, ``commit`` and so on are those of the last
            start, ``starts`` has them for every start.
        """
        self._note_start()
        if self.results is None:  # others: those of the same settings are replaced
            self.set_results_aside()
        record = {
            **made_with(),
            "starts": self._starts,
            "settings": self.settings,
            **extra,
            "results": results,
        }
        write_json(self.folder / "results.json", record)
        return record

    def set_results_aside(self) -> None:
        """Keeps results of a shorter run, or of another test, under another name."""
        path = self.folder / "results.json"
        if path.exists():
            kept = (ASIDE.fullmatch(other.name) for other in self.folder.iterdir())
            number = max((int(match[1]) for match in kept if match), default=0) + 1
            path.rename(self.folder / f"results-{number}.json")

    def train(
        self,
        learner: keras.Model,
        make_episodes: Callable[[int], tf.data.Dataset],
        *,
        iterations: int | None,
        epoch_iterations: int,
        callbacks: list[keras.callbacks.Callback] | None = None,
        monitor: str | None = None,
        name: str = "",
        clock: TrainingClock | None = None,
        **fit_arguments: Any,
    ) -> list[dict[str, float]]:
        """Trains, or continues to train, with `fit`.

        Args:
            learner: A compiled learner, or another compiled model that knows its inputs.
            make_episodes: Maps the number of batches already seen to the rest of them.
            iterations: Meta-iterations in all; None for as many as the clock has time for.
            epoch_iterations: Meta-iterations between checkpoints.
            callbacks: More callbacks for `fit`.
            monitor: A metric to be maximised; if given, the learner of worker 0 has weights and
                optimizer of its best epoch in the end.
            name: Distinguishes the parts of a run that trains several learners.
            clock: Measures the seconds of training in all processes, and may end it.
            **fit_arguments: Passed on to `fit`.

        Returns:
            The history, a dictionary per epoch.

        Raises:
            ValueError: ``iterations`` is not a multiple of ``epoch_iterations``, or that not one of
                the learner's ``steps_per_execution``: Keras would round an epoch up.
        """
        epochs = sys.maxsize
        if iterations is not None:
            epochs = check_epochs(iterations, epoch_iterations)
        if epoch_iterations % learner.steps_per_execution:
            raise ValueError(
                "epoch_iterations must be a multiple of the learner's steps_per_execution, "
                f"{learner.steps_per_execution}, got {epoch_iterations}. Compile the learner with "
                "a number of steps that divides an epoch."
            )
        part = self.folder / name
        episodes = make_episodes(0)
        if isinstance(learner, keras_maml.MAML):
            learner.build_on(episodes)
        else:
            learner.optimizer.build(learner.trainable_variables)
        checkpoint = Checkpoint(part, monitor)
        done = int(self.workers.of_first(checkpoint.restore(learner)))
        checkpoint.steps = int(self.workers.of_first(checkpoint.steps))
        if not self.is_first:
            fit_arguments["verbose"] = 0
        seen = done * epoch_iterations + checkpoint.steps
        if clock:
            clock.resume(checkpoint.history, checkpoint.steps, checkpoint.means)
        if seen and self.is_first:
            total = "" if iterations is None else f" of {iterations:,}"
            print(f"Continuing after {seen:,}{total} iterations.")
        # An epoch that was interrupted ends first.
        for last in dict.fromkeys((done + bool(checkpoint.steps), epochs)):
            seen = done * epoch_iterations + checkpoint.steps
            expired = clock is not None and clock.expired and not checkpoint.steps
            if last > done and not expired:
                learner.fit(
                    make_episodes(seen) if seen else episodes,
                    initial_epoch=done,
                    epochs=last,
                    steps_per_epoch=epoch_iterations - checkpoint.steps,
                    callbacks=[*([clock] if clock else []), *(callbacks or []), checkpoint],
                    **fit_arguments,
                )
                done = last
        if monitor and self.is_first:
            learner.load_weights(checkpoint.best_path)
        return checkpoint.history


def results_of(
    folder: str | os.PathLike, settings: dict[str, Any], defaults: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Returns the results of a run if it has finished.

    Args:
        folder: The folder of the run.
        settings: Its settings, see `as_json`.
        defaults: What settings were that are newer than the run, see `defaults_of`.
    """
    path = pathlib.Path(folder) / "results.json"
    results, defaults = json.loads(path.read_text()) if path.exists() else None, defaults or {}
    same = results and defaults | results["settings"] == defaults | settings
    return results if same else None


def as_json(settings: Any) -> dict[str, Any]:
    """Returns the settings of a dataclass as they are after writing and reading them as JSON."""
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def made_with() -> dict[str, Any]:
    """Returns what says how results are made: command, commit, date and versions."""
    return {
        "command": as_typed(),
        "commit": COMMIT,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }


def check_epochs(iterations: int, epoch_iterations: int) -> int:
    """Returns the number of epochs.

    Raises:
        ValueError: One is below 1, or the first not a multiple of the second.
    """
    check_count("iterations", iterations, minimum=1)
    check_count("epoch_iterations", epoch_iterations, minimum=1)
    epochs, rest = divmod(iterations, epoch_iterations)
    if rest:
        raise ValueError(
            f"iterations must be a multiple of {epoch_iterations} (epoch_iterations), got "
            f"{iterations}."
        )
    return epochs


def defaults_of(settings: Any) -> dict[str, Any]:
    """Returns the defaults of the settings of a dataclass, as they are read from JSON."""
    fields = dataclasses.fields(settings)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps(defaults))


def _continues(name: str, there: Any, asked: Any) -> bool:
    """Whether a run with one value of a setting can go on with another."""
    if name in LENGTHS:
        return True  # see Run._check_length
    if name in ("methods", "algorithms", "seeds"):
        return {*there} <= {*asked}
    return there == asked or name.startswith(("test_", "target_"))


def commit() -> str | None:
    """Returns the commit of the checkout, with a plus if files differ from it; None without."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty=+"]
    result = subprocess.run([*command, "--abbrev=12"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


COMMIT = commit()  # of the code that runs, whatever is committed meanwhile
