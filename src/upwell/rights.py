"""What the parts call of AWS, as IAM actions: policies, remedies and documentation take them from here.

A test compares them with the calls that the code makes.
"""

from __future__ import annotations

from typing import Final

# --- Kinesis ---
SEND_RECORDS: Final = ("kinesis:PutRecords", "kinesis:DescribeStreamSummary")
RECEIVE_RECORDS: Final = (
    "kinesis:ListShards", "kinesis:GetShardIterator", "kinesis:GetRecords", "kinesis:DescribeStreamSummary",
)  # fmt: skip
# What Lambda itself calls, with the function's role, to feed the function.
FEED_FUNCTION: Final = (*RECEIVE_RECORDS, "kinesis:DescribeStream")

# --- DynamoDB ---
WRITE_ITEMS: Final = ("dynamodb:PutItem", "dynamodb:UpdateItem")
REMOVE_ITEMS: Final = ("dynamodb:DeleteItem",)  # only with `deletes: remove`
SWEEP_ITEMS: Final = ("dynamodb:Scan",)  # resyncs, `verify`
CHECK_TABLES: Final = ("dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive")
CREATE_TABLES: Final = ("dynamodb:CreateTable", "dynamodb:UpdateTimeToLive")
READ_ITEMS: Final = ("dynamodb:GetItem", "dynamodb:Query", "dynamodb:Scan")
READ_INDEX: Final = ("dynamodb:Query",)
KEEP_LANES: Final = ("dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:Scan")
KEEP_LETTERS: Final = ("dynamodb:PutItem",)
ASK_REPAIR: Final = ("dynamodb:PutItem",)
POLL_REPAIRS: Final = ("dynamodb:Query", "dynamodb:UpdateItem")

# --- S3: without ListBucket, S3 does not tell an object that is missing from one that may not be read ---
PUT_CLAIMS: Final = ("s3:PutObject",)
GET_CLAIMS: Final = ("s3:GetObject",)
MISS_CLAIMS: Final = ("s3:ListBucket",)

# --- KMS ---
ENCRYPT: Final = ("kms:GenerateDataKey",)
DECRYPT: Final = ("kms:Decrypt",)
