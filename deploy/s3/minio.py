"""MinIO's users, and where its buckets send their events."""

from collections.abc import Mapping
from typing import Final

from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from minio.notificationconfig import NotificationConfig, QueueConfig

from cra.shared.settings import Settings
from deploy.s3.policies import policy

EVENTS_ARN: Final = "arn:minio:sqs::CRA:webhook"
"""The webhook that MINIO_NOTIFY_WEBHOOK_*_CRA describe."""
EVENTS: Final = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]

_ALREADY: Final = "XMinioAdminPolicyChangeAlreadyApplied"


def add_users(settings: Settings, users: Mapping[str, tuple[str, str]]) -> None:
    """Make or renew a user for each role, who may do what its policy says.

    Args:
        settings: address of the store, and credentials of its root.
        users: access and secret key by role.

    Raises:
        MinioAdminException: the store refuses.
    """
    root = StaticProvider(settings.s3_access_key, settings.s3_secret_key.get_secret_value())
    admin = MinioAdmin(
        endpoint=settings.s3_endpoint,
        credentials=root,
        region=settings.s3_region,
        secure=settings.s3_secure,
    )
    for role, (access_key, secret_key) in users.items():
        admin.user_add(access_key, secret_key)
        admin.policy_add(f"cra-{role}", policy=policy(role, settings))
        try:
            admin.attach_policy([f"cra-{role}"], user=access_key)
        except MinioAdminException as error:
            if _ALREADY not in str(error):
                raise


def send_events(client: Minio, bucket: str) -> None:
    """Have the events of a bucket sent to the webhook; what else it sends is kept.

    Raises:
        S3Error: the store knows no such webhook.
    """
    there = client.get_bucket_notification(bucket)
    others = [one for one in there.queue_config_list if one.queue != EVENTS_ARN]
    client.set_bucket_notification(
        bucket,
        NotificationConfig(
            cloud_func_config_list=there.cloud_func_config_list,
            queue_config_list=[*others, QueueConfig(queue=EVENTS_ARN, events=EVENTS)],
            topic_config_list=there.topic_config_list,
        ),
    )
