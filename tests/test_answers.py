"""Answers of SCM that are neither yes nor no: nothing is ordered for them, nothing is given up."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from conftest import Lab
from simulators.scm import CERTIFICATES_PATH, PASSING, scm_error
from simulators.server import Fault, Request, Response, maintenance_page
from test_faults import failed, wants
from test_lifecycle import leaf, served, use_admin

PATHS = {
    "enrollment": {"renew": "/renew", "replace": "/replace", "download": f"{CERTIFICATES_PATH}/1"},
    "admin": {"renew": "/renewById", "replace": "/replace/", "download": "/collect/"},
}
PENDING = (0, -103, -109, -183, -1400)


@pytest.fixture(params=["enrollment", "admin"])
def api(request: pytest.FixtureRequest, lab: Lab) -> Lab:
    if request.param == "admin":
        use_admin(lab, by_login=False)
    lab.write_profile(enrollment={"max_wait": 0})
    return lab


def part(lab: Lab, operation: str) -> str:
    """Return what stands in the path of an operation at the API that scm.yaml names."""
    config = yaml.safe_load((lab.home / "scm.yaml").read_text())
    return PATHS[config.get("api", "enrollment")][operation]


def about_to(api: Lab, action: str) -> tuple[str, list[str]]:
    """Bring a lab to where an action can be asked for; return the order's path, and the command."""
    if action == "enroll":
        is_admin = "admin" in (api.home / "scm.yaml").read_text()
        return "/enroll" if is_admin else CERTIFICATES_PATH, ["run"]
    assert api("run").exit_code == 0
    return part(api, action), [action, "www"]


def answered(lab: Lab, method: str, path: str, response: Response, times: int = 99) -> Fault:
    fault = Fault("status", matches=wants(method, path), response=response, times=times)
    lab.scm.server.faults.append(fault)
    return fault


def orders(lab: Lab) -> list[str]:
    return [order.action for order in lab.scm.orders]


# "Try later", in SCM's codes


@pytest.mark.parametrize("code", [*PASSING, -109, -1400])
@pytest.mark.sample(5)
def test_a_passing_code_does_not_turn_a_replacement_into_an_enrollment(lab: Lab, code: int) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    answered(lab, "POST", "/replace", scm_error(code))
    kind, message = failed(lab, "replace", "www")
    assert kind == "unavailable"
    assert f"(code {code})" in message
    assert orders(lab) == ["enroll"]
    lab.scm.server.faults.clear()
    assert lab.json("replace", "www").profile()["outcome"] == "replaced"
    assert orders(lab) == ["enroll", "replace"]
    assert lab("run").text == ""


@pytest.mark.parametrize("action", ["enroll", "renew", "replace"])
@pytest.mark.sample(3)
def test_a_passing_code_orders_nothing(api: Lab, action: str) -> None:
    path, command = about_to(api, action)
    answered(api, "POST", path, scm_error(-195))
    assert failed(api, *command)[0] == "unavailable"
    assert len(api.scm.orders) == (action != "enroll")
    api.scm.server.faults.clear()
    assert api.json(*command).exit_code == 0
    assert orders(api) == ["enroll", action][action == "enroll" :]
    assert served(api)[0] == leaf(api)


@pytest.mark.parametrize("answer", [scm_error(-2), scm_error(-140), maintenance_page()], ids=str)
@pytest.mark.sample(3)
def test_a_download_that_passes_gives_nothing_up(api: Lab, answer: Response) -> None:
    fault = answered(api, "GET", part(api, "download"), answer)
    for _ in range(2):
        kind, message = failed(api, "run", "--wait", "0")
        assert kind == "unavailable"
        assert message.endswith(": the next run tries again")
    assert fault.times < 98
    api.scm.server.faults.clear()
    assert api.json("run").profile()["outcome"] == "enrolled"
    assert orders(api) == ["enroll"]


def test_a_download_is_asked_for_again_while_there_is_time(lab: Lab) -> None:
    answered(lab, "GET", f"{CERTIFICATES_PATH}/1", scm_error(-65), times=2)
    lab.write_profile()
    assert lab.json("run").profile()["outcome"] == "enrolled"


def test_what_scm_cannot_do_is_told_from_what_was_asked_wrongly(lab: Lab) -> None:
    """Another request might succeed, so no certificate is bought in its place."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    for answer in (scm_error(-62, "Owner"), scm_error(-1002, "csr"), Response(400)):
        fault = answered(lab, "POST", "/replace", answer, times=1)
        assert failed(lab, "replace", "www")[0] == "rejected"
        assert fault.times == 0
    answered(lab, "POST", "/renew", Response(404, b"<html>Not Found"), times=1)
    assert failed(lab, "renew", "www")[0] == "rejected"
    assert orders(lab) == ["enroll"]
    answered(lab, "POST", "/replace", scm_error(-130), times=1)
    assert lab.json("replace", "www").profile()["outcome"] == "replaced"
    assert orders(lab) == ["enroll", "enroll"]


# A page where data should be


def test_a_page_instead_of_a_status_is_a_warning(api: Lab) -> None:
    assert api("run").exit_code == 0
    (order,) = api.scm.orders
    path = f"/{order.cert_id}"
    answered(api, "GET", path, maintenance_page())
    outcome = api.json("run")
    assert outcome.profile()["outcome"] == "unchanged"
    assert "could not be asked whether" in outcome.document()["warnings"][0]


def test_a_page_instead_of_the_list_of_types(lab: Lab) -> None:
    use_admin(lab, by_login=False)
    lab.write_profile()
    for answer in (maintenance_page(), Response(200, b'{"types": []}')):
        answered(lab, "GET", "/types", answer, times=1)
        kind, message = failed(lab)
        assert kind == "unavailable"
        assert message.endswith(
            f"(HTTP 200 from {lab.scm.url}/api/ssl/v1/types): the next run tries again"
        )
    assert lab("run").exit_code == 0
    assert orders(lab) == ["enroll"]


@pytest.mark.parametrize("action", ["enroll", "renew", "replace"])
@pytest.mark.sample(3)
def test_a_page_instead_of_the_answer_to_an_order_leaves_it_unknown(api: Lab, action: str) -> None:
    """Something in front of SCM may have shown it after the order got through."""
    path, command = about_to(api, action)
    page = Fault("told", matches=wants("POST", path), response=maintenance_page())
    api.scm.server.faults.append(page)
    assert failed(api, *command)[0] == "unknown_outcome"
    placed = len(api.scm.orders)
    api("run")
    assert len(api.scm.orders) == placed


@pytest.mark.parametrize("what", ["list", "download"])
@pytest.mark.parametrize("answer", [maintenance_page(), scm_error(-14)], ids=["page", "code"])
@pytest.mark.sample(3)
def test_a_lost_order_that_scm_cannot_be_asked_about_stays_unknown(
    lab: Lab, what: str, answer: Response
) -> None:
    """No answer is not the answer that there is no such order."""
    use_admin(lab, by_login=False)
    lab.write_profile()
    lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/enroll")))
    assert failed(lab)[0] == "unknown_outcome"
    path = "/api/ssl/v1?common" if what == "list" else "/collect/"
    answered(lab, "GET", path, answer)
    assert failed(lab)[0] == "unavailable"
    assert orders(lab) == ["enroll"]
    lab.scm.server.faults.clear()
    assert lab.json("run").profile()["outcome"] == "enrolled"
    assert orders(lab) == ["enroll"]


@pytest.mark.parametrize("answer", [maintenance_page(), scm_error(-195, status=200)], ids=str)
@pytest.mark.sample(3)
def test_a_page_instead_of_a_revocation_revokes_nothing(api: Lab, answer: Response) -> None:
    assert api("run").exit_code == 0
    method = "POST" if "admin" in (api.home / "scm.yaml").read_text() else "DELETE"
    answered(api, method, "/", answer, times=1)
    api.scm.server.faults[0].matches = lambda request: (
        request.method == method and "token" not in request.path
    )
    command = ["revoke", "www", "--reason", "superseded", "--yes"]
    assert failed(api, *command)[0] == "unavailable"
    assert api.scm.orders[0].status == "Issued"
    assert api("run").text == ""
    assert api.json(*command).profile()["outcome"] == "revoked"
    assert api.scm.orders[0].status == "Revoked"


# Retry-After


def test_an_order_that_waits_is_left_alone_for_as_long_as_scm_asks(lab: Lab) -> None:
    """Where that is longer than a run waits, the run does not wait for nothing: this one ends."""
    lab.scm.approval = "manual"
    lab.write_profile()

    def later(request: Request, response: Response) -> Response:
        headers = {**response.headers, "Retry-After": "300"}
        return (
            dataclasses.replace(response, headers=headers) if response.status == 404 else response
        )

    lab.scm.server.rewrite = later
    assert lab.spawn("run", "--wait", "299").exit_code == 5
    assert lab.scm.server.calls()[-2:] == [
        f"POST {CERTIFICATES_PATH}",
        f"GET {CERTIFICATES_PATH}/{lab.scm.orders[0].cert_id}",
    ]
    lab.scm.orders[0].approve()
    assert lab.json("run").profile()["outcome"] == "enrolled"


@pytest.mark.parametrize("where", [CERTIFICATES_PATH + "/1", "/token"])
@pytest.mark.sample(2)
def test_what_asks_again_later_does_not_stand_and_wait(lab: Lab, where: str) -> None:
    """A minute is waited for an order; a question for one moves, or ends the run."""
    for name in ("one", "two"):
        lab.appliance.add_virtual_server(f"vs_{name}", "load_balancing")
        servers = [{"name": f"vs_{name}", "type": "load_balancing"}]
        lab.write_profile(name, virtual_servers=servers)
    lab.scm.issue_after = 1
    assert lab("run", "--wait", "0").exit_code == 5
    answer = Response(503, b"", {"Retry-After": "60"})
    fault = answered(lab, "POST" if where == "/token" else "GET", where, answer)
    outcome = lab.json("run", "--wait", "59")
    assert [each["error"]["kind"] for each in outcome.document()["profiles"]] == ["unavailable"] * 2
    assert fault.times == 98
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert orders(lab) == ["enroll", "enroll"]


# The wrong address


PROBLEMS = {
    "error": b'{"status": 404, "error": "Not Found", "path": "/x"}',
    "message": b'{"message": "no Route matched with those values"}',
    "title": b'{"type": "about:blank", "title": "Not Found", "detail": "No static resource."}',
    "nested": b'{"error": {"code": "x", "message": "no such service"}}',
}
WORDS = {
    "error": "Not Found",
    "message": "no Route matched with those values",
    "title": "Not Found: No static resource.",
    "nested": "no such service",
}


@pytest.mark.parametrize("shape", PROBLEMS)
@pytest.mark.sample(2)
def test_the_address_of_another_api_is_told(lab: Lab, shape: str) -> None:
    answered(lab, "POST", CERTIFICATES_PATH, Response(404, PROBLEMS[shape]))
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "rejected"
    assert message == (
        f"SCM refused the enrollment: {WORDS[shape]} (HTTP 404 from "
        f"{lab.scm.url}{CERTIFICATES_PATH}): check url and api in scm.yaml: it may be the address "
        "of another API"
    )
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert orders(lab) == ["enroll"]


def test_the_right_address_is_the_remedy(lab: Lab) -> None:
    """At the other API's server there is no such path; with the right one all goes on."""
    front = lab.scm.fronts.pop(CERTIFICATES_PATH)
    lab.write_profile()
    assert "Not Found (HTTP 404 from" in failed(lab)[1]
    lab.scm.fronts[CERTIFICATES_PATH] = front
    assert lab("run").exit_code == 0


# Newer releases of the Admin API


def test_an_admin_api_with_v2_only(lab: Lab) -> None:
    use_admin(lab, by_login=False)
    lab.scm.admin.versions = ("v2",)
    lab.write_profile()
    assert lab("run").exit_code == 0
    assert lab.json("renew", "www").profile()["outcome"] == "renewed"
    assert lab.json("run").profile()["warnings"] == []
    assert lab("revoke", "www", "--reason", "superseded", "--yes").exit_code == 0
    assert [order.status for order in lab.scm.orders] == ["Issued", "Revoked"]
    asked = [call for call in lab.scm.server.calls() if "/api/ssl/v1" in call]
    assert all(
        "/types" in call
        for call in asked
        if not call.startswith(("GET", "POST /api/ssl/v1/revoke"))
    )


def test_a_certificate_that_is_not_there_is_not_looked_for_under_v2(lab: Lab) -> None:
    use_admin(lab, by_login=False)
    lab.write_profile()
    assert lab("run").exit_code == 0
    answered(lab, "GET", f"/{lab.scm.orders[0].cert_id}", scm_error(-5101))
    assert "could not be asked" in lab.json("run").profile()["warnings"][0]
    assert not [call for call in lab.scm.server.calls() if "/v2" in call]


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.sample(2)
def test_a_lost_order_is_found_on_any_page(lab: Lab, *, counted: bool) -> None:
    """Pages may be shorter than asked for; the newest is on the last one."""
    use_admin(lab, by_login=False)
    lab.scm.admin.page = 2
    lab.write_profile()
    for _ in range(3):
        assert lab("enroll", "--force", "www").exit_code == 0
    lab.scm.server.faults.append(Fault("lost", matches=wants("POST", "/renewById")))
    assert failed(lab, "renew", "www")[0] == "unknown_outcome"
    if not counted:
        lab.scm.server.rewrite = lambda _, response: dataclasses.replace(
            response, headers={"Content-Type": response.headers.get("Content-Type", "")}
        )
    assert lab.json("run").profile()["outcome"] == "renewed"
    assert orders(lab) == [*["enroll"] * 3, "renew"]


def test_a_list_that_gives_the_same_page_for_ever_ends(lab: Lab) -> None:
    use_admin(lab, by_login=False)
    lab.write_profile()
    lab.scm.server.faults.append(Fault("reset", matches=wants("POST", "/enroll")))
    failed(lab)
    page = Response(200, json.dumps([{"sslId": 7, "commonName": "www.example.com"}, {}]).encode())
    answered(lab, "GET", "/api/ssl/v1?common", page)
    assert lab.json("run").profile()["outcome"] == "enrolled"
    assert len([call for call in lab.scm.server.calls() if "v1?common" in call]) < 9


# What is missing in a renewal


def test_a_renewal_that_needs_a_profile_id_says_so(lab: Lab) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.scm.strict = True
    kind, message = failed(lab, "renew", "www")
    assert (kind, message.rpartition(": ")[2]) == (
        "rejected",
        "give enrollment.profile_id in the profile, the number of the certificate profile in SCM",
    )
    lab.write_profile(enrollment={"profile_id": lab.scm.account.profile})
    kind, message = failed(lab, "renew", "www")
    assert message.endswith(": give enrollment.custom_fields in the profile")
    enrollment = {"profile_id": lab.scm.account.profile, "custom_fields": {"Owner": "NetOps"}}
    lab.write_profile(enrollment=enrollment)
    assert lab.json("renew", "www").profile()["outcome"] == "renewed"
    assert orders(lab) == ["enroll", "renew"]


@pytest.mark.parametrize("code", [-111, -1001, -1021])
@pytest.mark.sample(2)
def test_other_words_for_a_missing_profile_id(lab: Lab, code: int) -> None:
    lab.write_profile()
    assert lab("run").exit_code == 0
    answered(lab, "POST", "/renew", scm_error(code, "profile"))
    assert "give enrollment.profile_id in the profile" in failed(lab, "renew", "www")[1]


def test_the_names_are_always_sent(lab: Lab) -> None:
    """No list, or an empty one, may be read as: the names from before."""
    lab.write_profile()
    assert lab("run").exit_code == 0
    lab.write_profile(certificate=lab.certificate(subject_alternative_names=None))
    assert lab.json("run").profile()["outcome"] == "replaced"
    body = json.loads([r for r in lab.scm.server.requests if "/replace" in r.path][-1].body)
    assert body["subjAltNames"] == ["www.example.com"]
    assert list(lab.scm.orders[-1].names) == ["www.example.com"]


# The token endpoint, and servers that ask to be left alone


@pytest.mark.parametrize(
    "answer",
    [
        maintenance_page(),
        Response(200, b""),
        Response(400, b'{"error": "temporarily_unavailable"}'),
    ],
    ids=["page", "nothing", "passing"],
)
@pytest.mark.sample(2)
def test_a_token_that_is_not_given_now(lab: Lab, answer: Response) -> None:
    answered(lab, "POST", "/token", answer)
    lab.write_profile()
    kind, message = failed(lab)
    assert kind == "unavailable"
    assert message.endswith(f" from {lab.scm.token_url}): the next run tries again")
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert orders(lab) == ["enroll"]


def test_a_token_from_the_wrong_address(lab: Lab) -> None:
    lab.write_scm(token_url=f"{lab.scm.url}/nowhere")
    lab.write_profile()
    assert failed(lab) == (
        "auth",
        f"SCM refused the login: Not Found (HTTP 404 from {lab.scm.url}/nowhere): check token_url "
        "in scm.yaml",
    )
    lab.write_scm()
    assert lab("run").exit_code == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_be_left_alone_is(lab: Lab, status: int) -> None:
    lab.write_profile()
    answer = Response(status, b"", {"Retry-After": "300"})
    fault = answered(lab, "GET", f"{CERTIFICATES_PATH}/1", answer)
    kind, message = failed(lab, "run", "--wait", "299")
    assert (kind, message[:31]) == ("unavailable", "SCM asks to be left alone until")
    assert fault.times == 98
    assert lab.scm.server.calls()[-1].endswith(lab.scm.orders[0].cert_id)
    lab.scm.server.faults.clear()
    assert lab.json("run").profile()["outcome"] == "enrolled"
    assert orders(lab) == ["enroll"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [(301, "rejected"), (308, "rejected"), (405, "rejected"), (408, "unavailable")],
)
@pytest.mark.sample(2)
def test_other_answers_to_an_order_that_was_not_placed(lab: Lab, status: int, kind: str) -> None:
    answered(lab, "POST", CERTIFICATES_PATH, Response(status, b"", {"Location": "https://x.test/"}))
    lab.write_profile()
    error, message = failed(lab)
    assert (error, f"HTTP {status} from {lab.scm.url}" in message) == (kind, True)
    assert ("check url and api in scm.yaml" in message) == (kind == "rejected")
    lab.scm.server.faults.clear()
    assert lab("run").exit_code == 0
    assert orders(lab) == ["enroll"]


@pytest.mark.parametrize("status", [302, 307, 425])
@pytest.mark.sample(2)
def test_other_answers_to_a_download_that_pass(lab: Lab, status: int) -> None:
    answered(lab, "GET", f"{CERTIFICATES_PATH}/1", Response(status, b"", {"Location": "/busy"}))
    lab.write_profile()
    assert failed(lab, "run", "--wait", "0")[0] == "unavailable"
    lab.scm.server.faults.clear()
    assert lab.json("run").profile()["outcome"] == "enrolled"
