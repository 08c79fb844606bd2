"""The API asked at random, as its own OpenAPI document says that it may be."""

import pytest
import shop

pytestmark = pytest.mark.slow

LEAKS = (
    "Traceback",
    'File "',
    "/learn_torchrec/",
    "site-packages",
    "/tmp/",
    "KeyError",
)


@pytest.fixture
def app(serve):
    client = serve(limits={"token": shop.TOKEN})
    return client.app


def test_nothing_breaks_or_leaks(app, caplog) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.checks import CHECKS

    headers = {"Authorization": f"Bearer {shop.TOKEN}"}
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
    wanted = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
    checks = [CHECKS.get_one(name) for name in wanted]
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 10
    valid = [operation.as_strategy() for operation in operations]
    invalid = [
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        for operation in operations
        if operation.method == "post" and operation.path != "/admin/reload"
    ]

    @given(case=st.one_of(*valid, *invalid))
    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case) -> None:
        answer = case.call(headers=headers)
        case.validate_response(answer, checks=checks)
        for leak in LEAKS:
            assert leak not in answer.text

    ask()
    assert "Traceback" not in caplog.text
