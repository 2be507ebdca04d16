"""What Ctrl-C does to an experiment: it stops at once, or as soon as what is done is saved.

Python sees Ctrl-C only between two steps of its own, and a compilation is one step of a minute.
Therefore a thread waits for the signal. Files are whole or not there (`keras_maml.files`), so that
a process can be ended anywhere; only where steps of training are done that no checkpoint holds, the
training itself ends, after saving them.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

EXIT_CODE = 130
"""What shells call a process that was ended by Ctrl-C."""


class Interruption:
    """Whether a person wants the process to end, and whether it has something to save."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._unsaved = False

    def reset(self) -> None:
        """Forgets what was noted."""
        self._requested.clear()
        self._unsaved = False

    def request(self) -> None:
        """Notes that a person wants the process to end."""
        self._requested.set()

    def requested(self) -> bool:
        """Whether training is to save what is done and to raise KeyboardInterrupt."""
        return self._requested.is_set()

    def unsaved(self, there: bool = True) -> None:
        """Notes that steps were done that no checkpoint holds, or that there are none any more."""
        self._unsaved = there

    def saved(self) -> None:
        """Notes that a checkpoint holds all.

        Raises:
            KeyboardInterrupt: A person wants the process to end.
        """
        self.unsaved(False)
        if self.requested():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def continuable(self, command: Callable[[], str]) -> Iterator[None]:
        """Ends the process after Ctrl-C with one line that says how to continue, and code 130.

        Args:
            command: Returns the command that continues.
        """

        def stop() -> None:
            print(f"\nInterrupted. The same command continues: {command()}", file=sys.stderr)

        with self._watch(stop):
            try:
                yield
            except KeyboardInterrupt:
                stop()
                raise SystemExit(EXIT_CODE) from None

    @contextlib.contextmanager
    def _watch(self, stop: Callable[[], None]) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # Signals are not for other threads.
            return
        self.reset()
        read, write = os.pipe()
        os.set_blocking(write, False)

        def wait() -> None:
            while number := os.read(read, 1):
                if number[0] != signal.SIGINT:
                    continue
                if self._requested.is_set() or not self._unsaved:
                    stop()
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(EXIT_CODE)
                self.request()
                print(
                    "\nStopping as soon as what is done is saved; Ctrl-C again stops at once.",
                    file=sys.stderr,
                    flush=True,
                )

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        before = signal.signal(signal.SIGINT, lambda *_: None)  # the thread sees to it
        descriptor = signal.set_wakeup_fd(write)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGINT, before)
            os.close(write)
            thread.join()
            os.close(read)


INTERRUPTION = Interruption()
"""That of this process."""
