"""Progress on stderr."""

from __future__ import annotations

import sys


def show_progress(batches):
    """Show a bar on stderr if it is a terminal and the job lasts longer than two seconds."""
    from tqdm import tqdm

    return tqdm(batches, "encoding masked images", unit="batch", delay=2, leave=False, disable=None)


def show_photos(photos, name="checking photos"):
    """Show such a bar while something is done with photos."""
    from tqdm import tqdm

    return tqdm(photos, name, unit="photo", delay=2, leave=False, disable=None)


class Pace:
    """Show images per second and the time left on stderr: a bar, or lines if it is no terminal."""

    def __init__(self, total, name="evaluating"):
        self.total, self.name, self.bar = total, name, None

    def __call__(self, count, measured=True):
        from tqdm import tqdm

        if self.bar is None:  # only when there is something to show, so that an error is a single line
            every = 0.1 if sys.stderr.isatty() else 30
            self.bar = tqdm(
                desc=self.name, total=self.total, unit="image", mininterval=every, maxinterval=every
            )
        if not measured:
            self.bar.initial += count
        self.bar.update(count)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
