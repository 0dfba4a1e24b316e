"""The grammar that every Milvus expression of ours has, whatever the filter holds."""

import re

# Everything that an expression may consist of: our words, hex in quotes, numbers.
HEX = '"(?:[0-9a-f]{2})*"'
LIST = rf"\[{HEX}(?:, {HEX})*\]"
CLAUSES = (
    rf"bucket_hex in {LIST}",
    r'key_hex like "(?:[0-9a-f]{2})+%"',
    rf"ARRAY_CONTAINS_ANY\(tags, {LIST}\)",
    r"ingested_at >= -?\d+",
    r"ingested_at < -?\d+",
)
CLAUSE = "|".join(f"(?:{clause})" for clause in CLAUSES)
EXPRESSION = re.compile(f"(?:{CLAUSE})(?: and (?:{CLAUSE}))*")
