"""The programs of docs/calling.md in Go and Java: compiled, and run on the running stack.

No installation brings their compilers and libraries: where those are missing the tests say so. On
Debian: golang-google-grpc-dev, golang-github-golang-protobuf-1-5-dev and protoc-gen-go-grpc for Go;
default-jdk, libgrpc-java, libprotobuf-java, libnetty-java, libperfmark-java and
protobuf-compiler-grpc-java-plugin for Java.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import blocks
from tests.e2e.test_stack import photograph
from tests.servers import ROOT
from tests.stack import Stack

GO_LIBRARIES = Path("/usr/share/gocode")
JARS = Path("/usr/share/java")
PAGE = "docs/calling.md"
PROTO = "cra/search/v1/search.proto"


def program(language: str) -> str:
    """Return the one program of a language."""
    (found,) = [block.text for block in blocks(PAGE) if block.language == language]
    return found


def run(command: list[str], folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder."""
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def check(command: list[str], folder: Path, **env: str) -> None:
    """Run a program that has to succeed."""
    done = run(command, folder, **env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def generate(folder: Path, *options: str) -> None:
    """Run protoc on the contract."""
    check(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *options, PROTO], folder
    )


def assert_searches(stack: Stack, command: list[str], folder: Path) -> None:
    """Check that a program prints ranked images, and tells the field of a bad request."""
    stack.put("calling.jpg", photograph(800))
    stack.follows(photograph(800), "calling.jpg")
    done = run([*command, "红墙"], folder, **stack.env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert any("images/calling.jpg" in line for line in lines)
    bad = run([*command, "墙" * 1001], folder, **stack.env)
    assert bad.returncode != 0
    assert "text: " in bad.stdout + bad.stderr
    stranger = run([*command, "红墙"], folder, **{**stack.env, "CRA_API_KEY": "wrong"})
    assert stranger.returncode != 0
    assert "UNAUTHENTICATED" in (stranger.stdout + stranger.stderr).upper()


def in_pkcs8(stack: Stack, folder: Path) -> dict[str, str]:
    """Return the setting of the client's key, as the page says that Java needs it."""
    name = stack.env.get("CRA_TLS_CLIENT_KEY")
    if not name:
        return {}
    file = folder / "pkcs8.pem"
    check(["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", name, "-out", str(file)], folder)
    return {"CRA_TLS_CLIENT_KEY": str(file)}


@pytest.mark.slow
def test_go(stack: Stack, tmp_path: Path) -> None:
    """The Go program compiles with the stubs that protoc makes, and searches."""
    needed = ("go", "protoc-gen-go", "protoc-gen-go-grpc")
    missing = [name for name in needed if shutil.which(name) is None]
    if missing or not (GO_LIBRARIES / "src/google.golang.org/grpc").is_dir():
        pytest.skip(f"no Go with gRPC here: {', '.join(missing) or GO_LIBRARIES} is missing")
    shop = tmp_path / "src/example.com/shop"
    shop.mkdir(parents=True)
    package = f"M{PROTO}=example.com/shop/searchv1"
    options = [f"--{kind}_opt=module=example.com/shop" for kind in ("go", "go-grpc")]
    options += [f"--{kind}_opt={package}" for kind in ("go", "go-grpc")]
    generate(shop, f"--go_out={shop}", f"--go-grpc_out={shop}", *options)
    (shop / "main.go").write_text(program("go"), encoding="utf-8")
    env = {
        "GO111MODULE": "off",
        "GOPATH": f"{tmp_path}:{GO_LIBRARIES}",
        "GOCACHE": str(tmp_path / "cache"),
        "GOFLAGS": "",
    }
    check(["go", "build", "-o", str(tmp_path / "shop")], shop, **env)
    assert_searches(stack, [str(tmp_path / "shop")], tmp_path)


@pytest.mark.slow
def test_java(stack: Stack, tmp_path: Path) -> None:
    """The Java program compiles with the stubs that protoc makes, and searches."""
    plugin = shutil.which("grpc_java_plugin") or shutil.which("protoc-gen-grpc-java")
    if not shutil.which("javac") or plugin is None or not list(JARS.glob("grpc-*.jar")):
        pytest.skip("no JDK with gRPC here")
    # The stubs have to be of the protobuf that is there, so its own protoc makes them.
    protoc = shutil.which("protoc")
    assert protoc is not None
    made = tmp_path / "generated"
    made.mkdir()
    check(
        [
            protoc,
            f"-I{ROOT / 'proto'}",
            f"--plugin=protoc-gen-grpc-java={plugin}",
            f"--java_out={made}",
            f"--grpc-java_out={made}",
            PROTO,
        ],
        tmp_path,
    )
    (tmp_path / "SearchExample.java").write_text(program("java"), encoding="utf-8")
    path = os.pathsep.join([str(JARS / "*"), str(tmp_path / "classes")])
    sources = [str(one) for one in [*made.rglob("*.java"), tmp_path / "SearchExample.java"]]
    check(["javac", "-encoding", "UTF-8", "-cp", path, "-d", "classes", *sources], tmp_path)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", path, "SearchExample"]
    env = {**stack.env, **in_pkcs8(stack, tmp_path)}
    if "does not support ALPN" in run([*command, "红墙"], tmp_path, **env).stderr:
        pytest.skip("compiled, but this Netty has no ALPN, which gRPC over TLS needs: not run")
    assert_searches(Stack(env), command, tmp_path)
