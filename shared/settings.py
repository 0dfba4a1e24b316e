"""Settings of every service: read once, typed, checked at start. `CRA_NAME` sets `name`."""

import re
import urllib.parse
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cra.shared.errors import FailedPreconditionError
from cra.shared.limits import HEADER
from cra.shared.tls import ClientTls, ServerTls


def _check_token(token: SecretStr) -> SecretStr:
    if not re.fullmatch(HEADER, token.get_secret_value()):
        raise ValueError("only visible ASCII characters can stand in a header")
    return token


def _check_bucket(name: str) -> str:
    if not re.fullmatch("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise ValueError(
            f"{name!r} is no bucket's name: that has 3 to 63 lower-case letters, digits, dots and "
            "hyphens, and begins and ends with a letter or digit"
        )
    return name


def _check_device(device: str) -> str:
    if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise ValueError(f"{device!r} is none of `auto`, `cpu`, `cuda` and `cuda:N`")
    return device


def _check_file(file: str) -> str:
    if file:
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise ValueError(f"{file!r} cannot be read: {error.strerror}") from error
    return file


Token = Annotated[SecretStr, AfterValidator(_check_token)]
Bucket = Annotated[str, AfterValidator(_check_bucket)]
Device = Annotated[str, AfterValidator(_check_device)]
File = Annotated[str, AfterValidator(_check_file)]
Port = Annotated[int, Field(ge=1, le=65535)]
MetricsPort = Annotated[int, Field(ge=0, le=65535)]


class EnvironmentSettings(BaseSettings):
    """Settings that are read from the environment; `CRA_NAME` sets `name`."""

    model_config = SettingsConfigDict(env_prefix="CRA_", extra="ignore", frozen=True)

    @classmethod
    def load(cls, env_file: Path | None = None) -> Self:
        """Read the settings; `env_file` too, whose values the environment overrules.

        Raises:
            FailedPreconditionError: names each variable that is wrong, never a secret's value.
        """
        try:
            return cls(_env_file=env_file, _secrets_dir=_SecretsFolder.find(env_file))
        except ValidationError as error:
            problems = [
                f"CRA_{'_'.join(str(part) for part in one['loc']).upper()}: "
                + one["msg"].removeprefix("Value error, ")
                for one in error.errors(include_input=False, include_url=False)
            ]
            raise FailedPreconditionError("; ".join(problems)) from None


class _SecretsFolder(BaseSettings):
    """The one setting that says where others are."""

    model_config = SettingsConfigDict(env_prefix="CRA_", extra="ignore")

    secrets_dir: str = ""

    @classmethod
    def find(cls, env_file: Path | None) -> str | None:
        """Return the folder of secrets, or None if there is to be none.

        Raises:
            FailedPreconditionError: there is no such folder, or a file of it cannot be read.
        """
        folder = cls(_env_file=env_file).secrets_dir
        if not folder:
            return None
        try:
            for file in Path(folder).iterdir():
                if file.name.upper().startswith("CRA_"):
                    file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            name = getattr(error, "filename", None) or folder
            reason = getattr(error, "strerror", None) or "holds what is no UTF-8 text"
            raise FailedPreconditionError(f"CRA_SECRETS_DIR: {name}: {reason}") from None
        return folder


class Settings(EnvironmentSettings):
    """All settings, each with its meaning."""

    secrets_dir: str = Field(
        "",
        description="folder of files, each named as a setting, such as `CRA_SERVICE_TOKEN`, that "
        "hold its value; the environment wins; empty: none",
    )

    model: str = Field(
        "deploy/models/miniature",
        description="official Chinese CLIP name (`ViT-B-16`, …), checkpoint file, or folder "
        "with `checkpoint.pt` and `config.json`",
    )
    config: str = Field(
        "",
        description="shape of a checkpoint file's towers: a JSON file or `VISION@TEXT` of cn_clip; "
        "empty: `config.json` beside it",
    )
    model_cache: str = Field("", description="folder for downloaded models; empty: cn_clip's own")
    device: Device = Field(
        "auto", description="`cpu`, `cuda`, `cuda:N`; auto: CUDA if there is one"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto",
        description="arithmetic of the towers; auto: the fastest floating point that the device "
        "has and whose vectors keep a cosine of 0.999 with fp32; int8, on CPU with OpenVINO, for "
        "the towers that keep it in that, while others take what they take for auto",
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="engine of the towers; auto: OpenVINO on CPU, torch on CUDA"
    )
    converted_models: str = Field(
        "",
        description="folder for towers converted for OpenVINO, each once; empty: "
        "`~/.cache/cra/converted`",
    )
    tower_threads: int = Field(
        0, ge=0, le=256, description="CPU threads of each tower's process; 0: one a core"
    )
    max_batch: int = Field(
        0,
        ge=0,
        le=256,
        description="most items in one forward pass; 0: found by measuring",
    )
    max_queue: int = Field(
        512, ge=1, le=100_000, description="most items that wait for each tower; more is refused"
    )
    batch_seconds: float = Field(
        30.0,
        gt=0,
        le=600,
        description="seconds after which a text tower that has not encoded a batch is started "
        "anew; the image tower has four times as long",
    )

    host: str = Field("127.0.0.1", description="address that servers listen on")
    gateway_port: Port = Field(50051, description="port of the gateway")
    embedding_port: Port = Field(50052, description="port of the embedding service")
    ingest_port: Port = Field(50053, description="port of the ingest service")
    events_port: Port = Field(8081, description="port of the bucket event receiver")
    events_fd: int = Field(
        0,
        ge=0,
        description="descriptor of a socket that listens on that port, handed on by whoever starts "
        "ingest again, so that events wait meanwhile; 0: ingest makes its own",
    )
    gateway_metrics_port: MetricsPort = Field(
        9101, description="port of the gateway's Prometheus metrics; 0: none"
    )
    embedding_metrics_port: MetricsPort = Field(
        9102, description="port of the embedding service's; 0: none"
    )
    ingest_metrics_port: MetricsPort = Field(
        9103, description="port of the ingest service's, bucket events included; 0: none"
    )
    worker_metrics_port: MetricsPort = Field(
        9106, description="port of an ingest worker's, all of its processes together; 0: none"
    )
    web_port: Port = Field(8080, description="port of the search page")
    web_metrics_port: MetricsPort = Field(
        9105, description="port of the search page's Prometheus metrics; 0: none"
    )
    web_changes: bool = Field(
        True,
        description="people may put pictures into the first of `CRA_BUCKETS` by the search page, "
        "see what cannot be indexed, and have it tried again",
    )
    web_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="host names that the search page answers to beside loopback's, separated by "
        "commas; empty: any, but none where `CRA_HOST` is loopback",
    )
    web_key: SecretStr = Field(
        SecretStr(""),
        description="key that signs the search page's addresses of pictures, the same on all its "
        "replicas; empty: one made at start",
    )
    web_thumbnails: str = Field(
        "", description="folder where the search page keeps thumbnails; empty: one made at start"
    )
    web_thumbnails_bytes: int = Field(
        2**30, ge=2**20, le=2**50, description="size of that folder, from which on the oldest go"
    )
    max_calls: int = Field(
        64,
        ge=2,
        le=1024,
        description="calls that a server works on at once; more is refused; the embedding service "
        "takes four times as many",
    )
    max_wait: float = Field(
        1.0,
        gt=0,
        le=600,
        description="seconds that the answer to a Search may be expected to take when it is taken; "
        "more is refused",
    )
    drain_seconds: float = Field(
        20.0, ge=0, le=600, description="time for running calls to end after SIGTERM"
    )

    gateway_target: str = Field("dns:///127.0.0.1:50051", description="where clients find Search")
    embedding_target: str = Field("dns:///127.0.0.1:50052", description="where encoders are found")
    other_embedding_target: str = Field(
        "",
        description="where encoders of a second image tower are found while a gateway moves from "
        "one to the other; the one for which a release is activated answers; empty: there is none",
    )
    ingest_target: str = Field("dns:///127.0.0.1:50053", description="where ingest is found")

    tls_cert: File = Field(
        "",
        description="PEM file of the gRPC server's certificate and chain; empty: it speaks "
        "plaintext",
    )
    tls_key: File = Field("", validate_default=True, description="PEM file of its private key")
    tls_client_ca: File = Field(
        "",
        validate_default=True,
        description="PEM file of the authorities of clients' certificates, which the gRPC server "
        "then asks for (mutual TLS); empty: it asks for none",
    )
    tls_ca: File = Field(
        "",
        description="PEM file of the authorities that are trusted where this calls another gRPC "
        "server; empty: it calls in plaintext",
    )
    tls_client_cert: File = Field(
        "",
        validate_default=True,
        description="PEM file of the certificate and chain that is shown there; empty: none",
    )
    tls_client_key: File = Field(
        "", validate_default=True, description="PEM file of its private key"
    )
    query_cache: int = Field(
        10_000, ge=0, le=1_000_000, description="vectors of texts that a gateway remembers; 0: none"
    )
    expand_queries: bool = Field(
        False,
        description="encode texts that hold a term of architecture with its other names too, where "
        "a search does not say",
    )
    encode_timeout: float = Field(
        30.0,
        gt=0,
        le=600,
        description="seconds that embedding may take for a call, of ingest or of a query",
    )

    s3_endpoint: str = Field("127.0.0.1:9000", description="host:port of the object store")
    s3_secure: bool = Field(False, description="speak TLS to the object store")
    s3_region: str = Field("us-east-1", description="region that requests are signed for")
    s3_access_key: str = Field("", description="access key of the object store")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="its secret")
    s3_public_endpoint: str = Field(
        "", description="host:port that signed URLs name; empty: `CRA_S3_ENDPOINT`"
    )
    url_seconds: int = Field(3600, ge=1, le=604_800, description="how long a signed URL is valid")
    buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        ("images",),
        min_length=1,
        description="buckets whose images are indexed, separated by commas",
    )
    releases_bucket: Bucket = Field(
        "releases",
        description="bucket of text releases; never one of `CRA_BUCKETS`",
    )
    release_poll_seconds: float = Field(
        2.0, gt=0, le=60, description="time between two looks at which release is active"
    )
    max_releases: int = Field(
        4, ge=1, le=64, description="releases that are loaded beside the model's own text tower"
    )

    milvus_uri: str = Field("http://127.0.0.1:19530", description="the vector database")
    milvus_token: SecretStr = Field(SecretStr(""), description="its token, `user:password`")
    milvus_timeout: float = Field(10.0, gt=0, le=600, description="seconds for one request to it")

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="broker, waiting line and failure list; over TLS: "
        "`rediss://HOST:PORT/0?ssl_cert_reqs=required`, `&ssl_ca_certs=FILE` for an authority of "
        "one's own",
    )
    event_token: Token = Field(
        SecretStr(""), description="bearer token of bucket events; empty: every event is refused"
    )
    service_token: Token = Field(
        SecretStr(""),
        description="bearer token of the embedding service and of ingest's changing calls; "
        "empty: none is asked for",
    )
    api_keys_file: str = Field(
        "",
        description="file of the API keys that may search, made by `cra keys`; empty: anybody may",
    )
    api_key: Token = Field(
        SecretStr(""), description="API key that `cra` and other clients show the gateway"
    )
    page_key: SecretStr = Field(
        SecretStr(""),
        description="key that signs page tokens, the same on all gateways; empty: one made at "
        "start",
    )

    heartbeat_folder: str = Field(
        "",
        description="folder where an ingest worker and beat touch a file each for as long as they "
        "work; empty: none",
    )
    worker_processes: int = Field(
        0, ge=0, le=256, description="processes of an ingest worker; 0: one a core, two at least"
    )
    ingest_batch: int = Field(32, ge=1, le=64, description="images that a task takes at once")
    lease_seconds: int = Field(
        60, ge=5, le=3600, description="silence after which a task's objects go back in line"
    )
    max_losses: int = Field(
        3, ge=1, le=100, description="workers that an object may take down before it fails"
    )
    max_tries: int = Field(
        10,
        ge=1,
        le=1000,
        description="failures of an object by itself, while others get through, before it is on "
        "the failure list",
    )
    max_object_bytes: int = Field(
        64 * 2**20, ge=1, le=2**31, description="larger objects fail without being downloaded"
    )
    reconcile_seconds: int = Field(
        300, ge=1, le=604_800, description="time between two reconciles of buckets and index"
    )
    max_deletion_share: float = Field(
        0.1, ge=0, le=1, description="share of the index that a reconcile may remove unasked"
    )

    log_format: Literal["console", "json"] = Field("console", description="how log lines look")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severity that is logged"
    )
    count_seconds: int = Field(
        60,
        ge=1,
        le=86_400,
        description="time between two counts of objects and index for metrics; longer where "
        "counting takes long",
    )
    otlp_endpoint: str = Field(
        "",
        description="where OpenTelemetry traces go to, by OTLP over HTTP, such as "
        "`http://collector:4318`; empty: nowhere",
    )
    trace_file: str = Field(
        "", description="file that traces are appended to, a span a line; empty: none"
    )
    trace_sample: float = Field(
        1.0, ge=0, le=1, description="share of traces that are kept, of those that begin here"
    )

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_otlp(cls, value: str) -> str:
        if value and not re.fullmatch("https?://[^/?#]+/?", value):
            raise ValueError(f"{value!r} is not of the form http://HOST:PORT")
        return value

    @field_validator("buckets", "web_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("buckets")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice!r} twice")
        return tuple(_check_bucket(name) for name in names)

    @field_validator("releases_bucket")
    @classmethod
    def _keep_apart(cls, value: str, info: ValidationInfo) -> str:
        if value in info.data.get("buckets", ()):
            raise ValueError("is among CRA_BUCKETS; releases are never ingested")
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis(cls, value: SecretStr) -> SecretStr:
        url = urllib.parse.urlsplit(value.get_secret_value())
        asked = urllib.parse.parse_qs(url.query).get("ssl_cert_reqs")
        if url.scheme == "rediss" and asked != ["required"]:
            # Celery then takes any certificate, and the password goes to whoever shows one.
            raise ValueError("rediss:// needs ?ssl_cert_reqs=required")
        return value

    @field_validator("tls_key", "tls_client_key")
    @classmethod
    def _pair(cls, value: str, info: ValidationInfo) -> str:
        cert = str(info.field_name).replace("key", "cert")
        if cert in info.data and bool(value) != bool(info.data[cert]):
            raise ValueError(f"must be set if CRA_{cert.upper()} is, and only then")
        return value

    @field_validator("tls_client_ca", "tls_client_cert")
    @classmethod
    def _extend(cls, value: str, info: ValidationInfo) -> str:
        base = "tls_cert" if info.field_name == "tls_client_ca" else "tls_ca"
        if value and not info.data.get(base, "bad, and told already"):
            raise ValueError(f"has no effect without CRA_{base.upper()}")
        return value

    @property
    def other_tower(self) -> Self | None:
        """These settings with the encoders of the second image tower; None if there is none."""
        if not self.other_embedding_target:
            return None
        return self.model_copy(
            update={"embedding_target": self.other_embedding_target, "other_embedding_target": ""}
        )

    @property
    def server_tls(self) -> ServerTls | None:
        """The files of a gRPC server; None if it speaks plaintext."""
        if not self.tls_cert:
            return None
        return ServerTls(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def client_tls(self) -> ClientTls | None:
        """The files of a gRPC client; None if it speaks plaintext."""
        if not self.tls_ca:
            return None
        return ClientTls(self.tls_ca, self.tls_client_cert, self.tls_client_key)
