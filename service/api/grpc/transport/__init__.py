"""HTTP/2 and gRPC's framing on asyncio protocols: how calls come and answers go, knowing nothing of what is served."""
