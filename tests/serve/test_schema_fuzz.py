"""Requests drawn from the OpenAPI document, right ones and wrong ones, against every route: word and deed agree."""

from __future__ import annotations

import schemathesis
from hypothesis import settings
from schemathesis.checks import CheckFunction
from schemathesis.config import AnalysisConfig, ConstantsConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serve.asgi import Application
from serve.online import Online
from serve.service import Service
from tests.serve import hostile
from tests.serve.asking import Reply
from tests.serve.conftest import LIMITS
from tests.serve.stand_in import StandIn, StandInStore

ROOMY = LIMITS.model_copy(update={"max_body_bytes": 1 << 20})
APP = Application(Service(ROOMY, StandIn(), online=Online(StandInStore()), timeout_s=60))  # type: ignore[arg-type]
# The same examples each time, and none of them taken from words in our sources: one of those makes the stand-in fail.
SAME = SchemathesisConfig(
    seed=0,
    projects=ProjectsConfig(default=ProjectConfig(analysis=AnalysisConfig(constants=ConstantsConfig(enabled=False)))),
)
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP, config=SAME)


def keeps_its_word(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """What every answer must keep, over what the document says of it."""
    sent = [(name.encode(), value.encode("latin-1")) for name, values in response.headers.items() for value in values]
    headers = {name.decode(): value.decode("latin-1") for name, value in sent}
    found = hostile.faults(Reply(response.status_code, headers, response.content, sent, 0))
    assert not found, found


@SCHEMA.parametrize()
@settings(max_examples=100, deadline=None, database=None)
def test_what_is_documented_holds(case: schemathesis.Case) -> None:
    # A right body may still be refused, for an attribute that there is not or a time that is none: no schema says so.
    beyond: list[CheckFunction] = [positive_data_acceptance] if case.operation.body else []
    case.call_and_validate(additional_checks=[keeps_its_word], excluded_checks=beyond)
