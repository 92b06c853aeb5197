"""docs/deploying-ids.md: its Python runs, with real servers where they are installed, and its rights are the code's."""

import re
from pathlib import Path

import needs
import pytest
from ids_testing import ROOT, run_program
from servers import PostgreSQLServer, RedisServer, Server, ZooKeeperServer, running

from senet_fast.ids import leases

PAGE = (Path(__file__).resolve().parents[2] / "docs/deploying-ids.md").read_text()
BLOCKS = [part.split("```")[0] for part in PAGE.split("```python\n")[1:]]
LIBRARIES = ("celery", "kazoo", "redis")


def test_the_rights_are_those_of_the_code() -> None:
    assert f"```sql\n{leases.PostgreSQL.ddl('ids.workers', 'app')}```" in PAGE
    keys, *commands = leases.Redis.acl().split()
    assert f"'{keys}' {' '.join(commands)}\n" in PAGE


def here(server: Server, block: str) -> str:
    """The block with this server's address in place of the page's."""
    if isinstance(server, PostgreSQLServer):
        import psycopg

        with psycopg.connect(server.address, autocommit=True) as admin:
            admin.execute("CREATE ROLE app LOGIN; CREATE SCHEMA ids")
            admin.execute(leases.PostgreSQL.ddl("ids.workers", "app").encode())
        return block.replace("host=db dbname=app", f"host=127.0.0.1 port={server.port} dbname=postgres")
    if isinstance(server, RedisServer):
        import redis

        rights = ["on", ">PASSWORD", *leases.Redis.acl().split()]
        redis.Redis(port=server.port).execute_command("ACL", "SETUSER", "app", *rights)
        block = block.replace("//redis:6379", f"//127.0.0.1:{server.port}")
        return block.replace('host="redis"', f'host="127.0.0.1", port={server.port}')
    return block.replace("zookeeper:2181", f"127.0.0.1:{server.port}")


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: (re.findall(r"leases\.\w+|def \w+", block) or ["?"])[-1])
def test_the_recipes_run(block: str, tmp_path: Path) -> None:
    compile(block, "docs/deploying-ids.md", "exec")
    if "leases.Etcd" in block:
        return  # test_etcd.py does what it does, with certificates, users and endpoints of its own
    for library in LIBRARIES:
        if re.search(rf"^(import|from) {library}\b", block, re.MULTILINE):
            needs.library(library)
    environment = {"SENET_FAST_LEASES": str(tmp_path / "leases"), "PYTHONPATH": str(ROOT)}
    environment |= {"POD_INDEX": "3", "SLURM_ARRAY_TASK_ID": "4"}
    kinds = {"leases.Redis": RedisServer, "leases.PostgreSQL": PostgreSQLServer, "leases.ZooKeeper": ZooKeeperServer}
    kind = next((kind for name, kind in kinds.items() if name in block), None)
    if kind is None:
        run_program(block, cwd=tmp_path, env=environment, options="-W error")
        return
    with running(kind(tmp_path)) as server:
        run_program(here(server, block), cwd=tmp_path, env=environment, options="-W error")
