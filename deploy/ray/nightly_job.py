"""Runs the nightly job on a Ray cluster: submits it, shows its log, and ends with its exit code.

`ray job submit` ends with 1 whatever the job's own code was, so that a scheduler would try a refused night again.
Told to stop, this stops the job. Every node needs `recsys`, and the configuration's paths on storage that all share.

    RAY_API_SERVER_ADDRESS=http://head:8265 python deploy/ray/nightly_job.py --config /shared/recsys/nightly.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from ray.job_submission import JobStatus, JobSubmissionClient

POLL_S = 2.0
PATIENCE_S = 300.0  # how long a cluster may be busy with itself before we give up on it

Answer = TypeVar("Answer")


def main() -> int:
    """Returns the job's exit code; 1 where Ray never learned of one."""
    parser = argparse.ArgumentParser(description="Run the nightly job on a Ray cluster.")
    parser.add_argument("--config", required=True, help="the nightly configuration, at a path that every node can read")
    parser.add_argument("--address", help="http://HOST:8265 of the cluster; else RAY_API_SERVER_ADDRESS")
    parser.add_argument("--cpus", type=float, default=1, help="set aside for the job itself, beside its Ray workers'")
    said = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    client = JobSubmissionClient(said.address)
    job = f"recsys-nightly-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    try:
        patiently(
            lambda: client.submit_job(
                entrypoint=shlex.join(["recsys", "nightly", "--config", said.config]),
                submission_id=job,
                runtime_env={"env_vars": {"PYTHONUNBUFFERED": "1"}},
                entrypoint_num_cpus=said.cpus,
            )
        )
        return follow(client, job)
    except SystemExit:
        with contextlib.suppress(RuntimeError):  # it was not submitted yet
            client.stop_job(job)
        raise


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the job's log as it grows; returns its exit code."""
    shown = 0
    while True:
        details = patiently(lambda: client.get_job_info(job))
        log = patiently(lambda: client.get_job_logs(job))  # after the status, so that the last one printed is whole
        print(log[shown:], end="", flush=True)
        shown = len(log)
        if details.status.is_terminal():
            break
        time.sleep(POLL_S)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    why = (details.message or "").partition(", last available logs")[0]
    print(f"{job} {details.status}: {why}", file=sys.stderr)
    return details.driver_exit_code or 1


def patiently(ask: Callable[[], Answer]) -> Answer:
    """Asks again while the cluster cannot be reached or says to try again later.

    Raises:
        OSError, RuntimeError: it has not answered for `PATIENCE_S`, or refused; a job in it may go on there.
    """
    began = time.monotonic()
    while True:
        try:
            return ask()
        except (OSError, RuntimeError) as error:
            passing = isinstance(error, OSError) or "try again later" in str(error)
            if not passing or time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main())
