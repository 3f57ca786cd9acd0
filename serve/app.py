"""The typed builder that Ray Serve imports: `serve run serve.app:build registry=DIR`, or a config's import path."""

# No `from __future__ import annotations` here: Ray reads the builder's annotation as a class, to check its arguments.
from ray import serve
from ray.serve import Application

from .deployment import Recommendations
from .settings import Settings


def build(args: Settings) -> Application:
    """The application that these settings describe.

    Args:
        args: checked settings; Ray builds them from the `args` of its config or command line.
    """
    deployment = serve.deployment(
        num_replicas=args.replicas,
        # Slow requests queue in Service, which answers with a problem when there are too many; these stand behind it.
        max_ongoing_requests=2 * args.max_waiting,
        max_queued_requests=8 * args.max_waiting,
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=10,
    )
    return deployment(serve.ingress()(Recommendations)).bind(args)
