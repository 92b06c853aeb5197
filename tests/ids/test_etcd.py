"""etcd with users, certificates, several endpoints, and answers that get lost."""

import socket
import ssl
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
from servers import EtcdServer, free_port, running, use_all

from senet_fast.ids import Layout, LeaseError, leases

TTL = 60.0  # what these tests wait for is never the end of a lease


def etcd_lease(url: Any, **options: Any) -> leases.Etcd:
    return leases.Etcd(url, **{"ttl": TTL, "wait": 0.0, "workers": [4, 5], **options})


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running(EtcdServer(tmp_path_factory.mktemp("etcd"))) as server:
        yield server  # type: ignore[misc]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority's, a server's and a client's that it signed, and a key for tokens."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "extensions").write_text(
        "basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n"
    )
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout"
    commands = [f"{new} ca.key -x509 -days 2 -subj /CN=authority -addext keyUsage=keyCertSign -out ca.pem"]
    for name in ("server", "client"):
        sign = "openssl x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions"
        commands += [f"{new} {name}.key -subj /CN={name} -out {name}.csr", f"{sign} -in {name}.csr -out {name}.pem"]
    commands += ["openssl genrsa -out token.key 2048", "openssl rsa -in token.key -pubout -out token.pub"]
    needs.program("openssl")
    for command in commands:
        done = subprocess.run(command.split(), cwd=folder, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("tokens", ["simple", "jwt"])
def test_etcd_with_users(tokens: str, certificates: Path, tmp_path: Path, own_layout: Layout) -> None:
    """Simple tokens are forgotten by a server that restarts; signed ones are of a revision of the rights."""
    from senet_fast.ids.leases.etcd import _text

    keys = f",pub-key={certificates}/token.pub,priv-key={certificates}/token.key,sign-method=RS256,ttl=10m"
    kind = "simple" if tokens == "simple" else f"jwt{keys}"
    with running(EtcdServer(tmp_path, "--auth-token", kind)) as server:
        url = server.address  # type: ignore[attr-defined]
        admin = etcd_lease(url)
        with pytest.raises(LeaseError, match="authentication is not enabled"):
            etcd_lease(url, user="app", password="word").acquire(own_layout)
        for name in ("root", "app"):
            admin._call("auth/user/add", name=name, password="word")
            admin._call("auth/role/add", name=name)
            admin._call("auth/user/grant", user=name, role=name)
        prefix = {"permType": "READWRITE", "key": _text("senet_fast/"), "range_end": _text("senet_fast0")}
        admin._call("auth/role/grant", name="app", perm=prefix)
        admin._call("auth/enable")

        app = {"user": "app", "password": "word"}
        lease = etcd_lease(url, **app)
        lease.acquire(own_layout)
        lease.renew()
        server.stop()
        server.start()
        lease.renew()
        admin = etcd_lease(url, user="root", password="word")
        admin._call("auth/user/add", name="more", password="word")  # a new revision of the rights
        lease.renew()
        lease.release(0)

        secret = "a secret word"
        for refused, said in (
            (etcd_lease(url), r"user name is empty; expected user= and password= as etcd knows them, and got none"),
            (etcd_lease(url, user="app", password=secret), r"authentication failed.*and got user='app'"),
            (etcd_lease(url, prefix="other/", **app), r"permission denied; .*--prefix=true readwrite other/"),
        ):
            with pytest.raises(LeaseError, match=said) as caught:
                refused.acquire(own_layout)
            shown = "".join(traceback.format_exception(caught.value)) + repr(refused)
            assert secret not in shown


def test_etcd_with_certificates(certificates: Path, tmp_path: Path, own_layout: Layout) -> None:
    files = {name: str(certificates / f"{name}.pem") for name in ("ca", "server", "client")}
    context = ssl.create_default_context(cafile=files["ca"])
    stranger = ssl.create_default_context(cafile=files["ca"])
    context.load_cert_chain(files["client"], certificates / "client.key")
    options = ["--cert-file", files["server"], "--key-file", str(certificates / "server.key")]
    options += ["--client-cert-auth", "--trusted-ca-file", files["ca"]]
    with running(EtcdServer(tmp_path, *options, context=context)) as server:
        url = server.address  # type: ignore[attr-defined]
        use_all(etcd_lease(url, ssl=context), own_layout)
        refused = f"no etcd answers kv/range: {url}: .*(?i:certificate|alert|reset|eof|pipe)"
        with pytest.raises(ConnectionError, match=refused):
            etcd_lease(url, ssl=stranger).acquire(own_layout)
        with pytest.raises(ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            etcd_lease(url).acquire(own_layout)


def test_etcd_with_endpoints_that_do_not_answer(etcd: EtcdServer, own_layout: Layout) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel takes connections, nobody reads from them
        hangs = f"http://127.0.0.1:{listener.getsockname()[1]}"
        lease = etcd_lease([hangs, dead, etcd.address], ttl=9.0)
        lease.acquire(own_layout)
        lease.renew()
        lease.release(0)
        listener.settimeout(0.1)
        listener.accept()[0].close()
        with pytest.raises(TimeoutError):  # it was asked once: who answered last is asked first
            listener.accept()
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no etcd answers kv/range: {hangs}: timed out; {dead}: .*refused"):
            etcd_lease([hangs, dead], ttl=6.0).acquire(own_layout)
        assert time.monotonic() - started > 0.9  # half of a third of ttl
    for bad, said in ((["localhost:2379"], "url is 'localhost:2379'; expected"), ([], "url is empty")):
        with pytest.raises(ValueError, match=said):
            etcd_lease(bad)
    with pytest.raises(ValueError, match="names a user of localhost; expected user= and password=") as caught:
        etcd_lease("http://app:word@localhost:2379")
    assert "word@" not in str(caught.value)
    with pytest.raises(ValueError, match="password is missing; expected both"):
        etcd_lease(dead, user="app")
    with pytest.raises(ValueError, match=f"ssl with {dead}; expected https://"):
        etcd_lease(dead, ssl=ssl.create_default_context())


def test_etcd_answers_that_get_lost(etcd: EtcdServer, own_layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first server does what it was asked, and does not say so: the second one is asked the same."""
    lease = etcd_lease([etcd.address, etcd.address], workers=[4])
    post, lost = lease._post, []

    def lossy(url: str, timeout: float, method: str, request: dict[str, Any]) -> Any:
        answer = post(url, timeout, method, request)
        if method == "kv/txn" and not lost:
            lost.append(answer)
            raise TimeoutError("timed out")
        return answer

    monkeypatch.setattr(lease, "_post", lossy)
    assert lease.acquire(own_layout).worker_id == 4
    assert lost[0]["succeeded"]
    lease.renew()
    lease.release(0)


def test_an_etcd_renewal_that_arrives_late(
    etcd: EtcdServer, own_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up for lost, and later ones were answered: the end does not move back."""
    from senet_fast.ids.leases.etcd import _plain, _text

    lease = etcd_lease(etcd.address, workers=[5])
    lease.acquire(own_layout)
    post, late = lease._post, []

    def slow(url: str, timeout: float, method: str, request: dict[str, Any]) -> Any:
        if method == "kv/txn":
            late.append((url, timeout, method, request))
            raise TimeoutError("timed out")
        return post(url, timeout, method, request)

    with monkeypatch.context() as patch:
        patch.setattr(lease, "_post", slow)
        with pytest.raises(ConnectionError, match=r"no etcd answers kv/txn: http://.*: timed out"):
            lease.renew()
    time.sleep(0.01)
    until_ms = lease.renew()
    post(*late[0])
    found = lease._call("kv/range", key=_text(f"{lease._key}/until"))
    assert int(_plain(found["kvs"][0]["value"])) == until_ms
    lease.release(0)
