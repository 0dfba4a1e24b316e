"""What `cra doctor` asks the embedding service, and that of a second image tower."""

from collections.abc import Iterator

from cra.services.cli.findings import Facts, Finding, State, was_set
from cra.services.cli.part_checks import QUERY, TOKEN_MEND, WITHIN
from cra.services.cli.towers import Towers
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.errors import (
    CraError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
)
from cra.shared.ports import Models, ReleaseState
from cra.shared.settings import Settings


def embedding(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """Each replica's towers and releases, and a text encoded."""
    part = "embedding"
    try:
        with Towers(settings) as towers:
            found = list(_towers(part, towers, facts))
            answering = {one.at for one in towers.all}
    except (UnauthenticatedError, PermissionDeniedError) as error:
        yield Finding(part, State.WRONG, error.message, TOKEN_MEND)
        return
    except UnavailableError as error:
        if was_set(settings, "embedding_target"):
            mend = "CRA_EMBEDDING_TARGET names it: is it running and ready? Its log says why not"
            yield Finding(part, State.WRONG, error.message, mend)
        else:
            yield Finding(
                part, State.SKIPPED, "CRA_EMBEDDING_TARGET is not set here; the gateway asks it"
            )
        return
    yield from found
    for each in filter(None, (settings, settings.other_tower)):
        if each.embedding_target not in answering:
            continue
        encoder = RemoteEncoder.of(each, timeout=WITHIN)
        try:
            encoder.embed_texts([QUERY])
        except CraError as error:
            yield Finding(
                part, State.WRONG, f"it encodes no text: {error.message}", "its log says why not"
            )
        finally:
            encoder.close()


def _towers(part: str, towers: Towers, facts: Facts) -> Iterator[Finding]:
    """Look at each replica; those that stand by for another image tower are not compared."""
    for problem in towers.problems:
        yield Finding(
            part,
            State.WRONG,
            problem,
            "start it; CRA_OTHER_EMBEDDING_TARGET is for as long as an image tower moves",
        )
    for replicas in towers.all:
        for problem in replicas.silent:
            yield Finding(
                part, State.WARNING, problem, "start that replica, or take its address away"
            )
        for address, served in replicas.models.items():
            if problem := replicas.health(address):
                yield Finding(
                    part,
                    State.WRONG,
                    f"{address} answers, but {problem}",
                    "its log says why: a tower, a release, or that it starts or ends",
                )
            stands_by = towers.stands_by(served)
            yield from _replica(part, address, served, towers, stands_by=stands_by)
            tower = served.image_tower.fingerprint
            if stands_by:
                facts.stand_by.add(tower)
                continue
            first = "embedding" not in facts.towers
            facts.towers["embedding" if first else f"embedding at {address}"] = tower
            facts.releases[f"embedding at {address}"] = served.active_release.name
            facts.base_release = served.base_release
            facts.dimension = served.image_tower.dimension


def _replica(
    part: str, address: str, served: Models, towers: Towers, *, stands_by: bool
) -> Iterator[Finding]:
    tower = served.image_tower.fingerprint
    if stands_by:
        yield Finding(part, State.OK, f"{address} stands by with the image tower {tower}")
    elif served.releases_problem:
        yield Finding(
            part,
            State.WRONG,
            f"{address} does not follow the bucket of releases: {served.releases_problem}",
            "let its S3 user read CRA_RELEASES_BUCKET: deploy/s3/embedding.json",
        )
    for release in served.releases:
        # While two image towers are served each refuses the other's.
        theirs = release.image_tower not in {"", tower} and towers.serve(release.image_tower)
        if release.state is ReleaseState.REFUSED and not theirs:
            yield Finding(
                part,
                State.WARNING,
                f"{address} refuses {release.name}: {release.problem}",
                f"publish it again, or cra releases remove {release.name}",
            )
    yield Finding(
        part,
        State.OK,
        f"{address} serves {served.image_tower.name} on {served.device} ({served.runtime}, "
        f"{served.precision})",
    )
