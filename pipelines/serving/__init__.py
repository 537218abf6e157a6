"""The search service: an ASGI application, which a test drives in its process, and its deployment on Ray Serve.

From outside to inside: `connections` (uvicorn's sockets), `body_middleware` (bodies and headers, in Serve's proxy and again in the
replica), `access_middleware` (addresses, token, rates), `application` (routes), `served_gallery` (the version that answers).
"""
