"""What the client library says, as what tidewire raises: one table."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException

from tidewire.errors import TransportError, TransportRefused, TransportUnavailable

__all__ = ["LOST", "code_of", "is_shut_out", "names_of_errors", "publish_verdict", "translated", "unreached"]

_HINTS = {
    "_AUTHENTICATION": "the broker does not accept the user, the password or the mechanism",
    "SASL_AUTHENTICATION_FAILED": "the broker does not accept the user or the password",
    "UNSUPPORTED_SASL_MECHANISM": "name a mechanism that the broker offers: ?sasl=SCRAM-SHA-512",
    "ILLEGAL_SASL_STATE": "the broker wants another way of authentication",
    "_SSL": "check ca=, cert= and key=, and that the broker's certificate names its host",
    "TOPIC_AUTHORIZATION_FAILED": "the broker's rules do not allow this on this topic",
    "GROUP_AUTHORIZATION_FAILED": "the broker's rules do not allow READ on this group",
    "CLUSTER_AUTHORIZATION_FAILED": "the broker's rules do not allow this on the cluster",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "the broker's rules do not allow this transactional id",
    "DELEGATION_TOKEN_AUTHORIZATION_FAILED": "the broker's rules do not allow this token",
    "SECURITY_DISABLED": "the broker has no authorizer",
    "UNKNOWN_TOPIC_OR_PART": "provision the topic, or start the service with --provision",
    "_UNKNOWN_TOPIC": "provision the topic, or start the service with --provision",
    "_UNKNOWN_PARTITION": "the topic has fewer partitions than it had",
    "UNKNOWN_TOPIC_ID": "the topic was deleted and made anew",
    "INVALID_SESSION_TIMEOUT": "the lease lies outside the broker's group.min.session.timeout.ms and max",
    "UNSUPPORTED_VERSION": "the broker is too old for what was asked, or protocol= names what it does not have",
    "UNSUPPORTED_ASSIGNOR": "the broker has no assignor of this name: try protocol=classic",
    "INCONSISTENT_GROUP_PROTOCOL": "members of one group must all use the same protocol=",
    "GROUP_MAX_SIZE_REACHED": "the broker allows no more members in this group",
    "UNRELEASED_INSTANCE_ID": "another live member has the same instance=",
    "FENCED_INSTANCE_ID": "another live member has the same instance=",
    "INVALID_REPLICATION_FACTOR": "the cluster has fewer brokers than replication=",
    "POLICY_VIOLATION": "a policy of the broker refuses these settings",
    "INVALID_CONFIG": "the broker refuses these settings",
    "OFFSET_METADATA_TOO_LARGE": "the broker's offset.metadata.max.bytes must be at least 4096",
    "UNSUPPORTED_COMPRESSION_TYPE": "the broker cannot read what compression= names",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT": "the topic's message format is too old",
    "_INVALID_ARG": "a client.… setting is unknown or impossible, or a file of ca=, cert= or key= cannot be used",
    "_UNSUPPORTED_FEATURE": "this build of librdkafka lacks what was asked",
    "_RESOLVE": "a broker's name cannot be resolved",
    "_AUTO_OFFSET_RESET": "what the group had not settled is no longer retained",
    "OFFSET_OUT_OF_RANGE": "what the group had not settled is no longer retained",
}
_UNREACHED = "is there a broker at this address, and does it speak TLS? tls=true or tls=false in the URL says so"
_REFUSED = frozenset(_HINTS) - {"_RESOLVE", "UNKNOWN_TOPIC_ID", "GROUP_MAX_SIZE_REACHED"}
_LOST = (
    *("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "FENCED_MEMBER_EPOCH", "STALE_MEMBER_EPOCH", "REBALANCE_IN_PROGRESS"),
    *("FENCED_INSTANCE_ID", "_ASSIGNMENT_LOST", "_UNKNOWN_PARTITION", "_FENCED"),
)
LOST = frozenset(int(getattr(KafkaError, name)) for name in _LOST)
"""A commit that ends so is nobody's failure: the group has moved on, and whether we still own the lane will be told."""
_SHUT_OUT = frozenset({"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "_SSL"})
_REJECTED = {
    "MSG_SIZE_TOO_LARGE": "too_large",
    "RECORD_LIST_TOO_LARGE": "too_large",
    "INVALID_MSG_SIZE": "too_large",
    "UNKNOWN_TOPIC_OR_PART": "unknown_topic",
    "_UNKNOWN_TOPIC": "unknown_topic",
    "_UNKNOWN_PARTITION": "unknown_topic",
    "UNKNOWN_TOPIC_ID": "unknown_topic",
    "INVALID_RECORD": "invalid",
    "INVALID_MSG": "invalid",
    "INVALID_TIMESTAMP": "invalid",
    "TOPIC_EXCEPTION": "invalid",
    "TOPIC_AUTHORIZATION_FAILED": "forbidden",
    "CLUSTER_AUTHORIZATION_FAILED": "forbidden",
    "POLICY_VIOLATION": "forbidden",
    "_PURGE_QUEUE": "unavailable",
    "NOT_ENOUGH_REPLICAS": "unavailable",
}


def names_of_errors() -> dict[int, str]:
    """Return the name of every code that the library knows."""
    return {value: name for name, value in vars(KafkaError).items() if name.isupper() and isinstance(value, int)}


_NAMES = names_of_errors()


def code_of(error: BaseException | KafkaError) -> str:
    """Return the name of an error's code, or that of its class."""
    if isinstance(error, KafkaException):
        error = error.args[0] if error.args and isinstance(error.args[0], KafkaError) else error
    if isinstance(error, KafkaError):
        return _NAMES.get(error.code(), str(error.code()))
    return type(error).__name__


def is_shut_out(error: KafkaError) -> bool:
    """Whether the brokers do not let the client in at all."""
    return code_of(error) in _SHUT_OUT


def translated(error: BaseException | KafkaError, what: str) -> TransportError:
    """Return what tidewire raises for *error*: refused where a person must change something, else unavailable."""
    if isinstance(error, TransportError):
        return error
    code = code_of(error)
    text = error.args[0] if isinstance(error, KafkaException) and error.args else error
    said = text.str() if isinstance(text, KafkaError) else str(text)
    kind = TransportRefused if code in _REFUSED else TransportUnavailable
    return kind(f"{what}: {said} ({code})", hint=_HINTS.get(code, ""))


def unreached(error: BaseException | KafkaError, what: str) -> TransportError:
    """Return what tidewire raises where *error* is all that was heard, from a broker that never answered."""
    found = translated(error, what)
    found.hint = found.hint or _UNREACHED
    return found


def publish_verdict(error: KafkaError) -> tuple[bool, str]:
    """Return whether a record is certainly not stored, and why. Every code without a word of ours may be stored."""
    code = code_of(error)
    return code in _REJECTED, _REJECTED.get(code, "")
