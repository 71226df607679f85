"""Names of families that the peer has only if asked for."""

request_body_size = "request_body_size"
response_body_size = "response_body_size"
