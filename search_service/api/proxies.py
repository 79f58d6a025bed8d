"""How a request shows that it came through a proxy: behind one on this machine, the caller may be anywhere."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

HEADERS = frozenset(
    {
        "via",  # RFC 9110, section 7.6.3
        "forwarded",  # RFC 7239
        "cdn-loop",  # RFC 8586
        "proxy-connection",  # by clients to proxies, some of which pass it on
        "x-real-ip",  # nginx, ngx_http_realip_module
        "x-client-ip",  # by convention, as the next two
        "x-cluster-client-ip",
        "x-proxyuser-ip",
        "client-ip",
        "true-client-ip",  # Akamai, Cloudflare
        "x-varnish",  # Varnish
        "fly-client-ip",  # fly.io
        "x-nf-client-connection-ip",  # Netlify
        "x-amz-cf-id",  # Amazon CloudFront
        "x-arr-log-id",  # IIS Application Request Routing
        "x-arr-ssl",
    }
)
"""Headers that proxies, CDNs and tunnels add. The sources are standards, or the documentation of those named."""

PREFIXES = (
    "x-forwarded",  # Apache's mod_proxy: -For, -Host, -Server; others: -Proto, -Port, -Prefix, -Scheme, -Client-Cert
    "x-original-",  # ingress-nginx: -Forwarded-For; Azure Application Gateway: -Host; IIS: -URL
    "cf-",  # Cloudflare: CF-Connecting-IP, -Ray, -Visitor, -IPCountry
    "cloudfront-",  # Amazon CloudFront: CloudFront-Viewer-Address
    "fastly-",  # Fastly-Client-IP, -FF, -SSL
    "akamai-",  # Akamai-Origin-Hop
    "x-akamai-",
    "x-azure-",  # Azure Front Door: X-Azure-ClientIP, -SocketIP, -Ref, -FDID
    "x-appengine-",  # Google App Engine: X-Appengine-User-IP
    "x-envoy-",  # Envoy: X-Envoy-External-Address
    "x-vercel-",  # Vercel: X-Vercel-Forwarded-For
    "tailscale-",  # Tailscale Serve: Tailscale-User-Login
    "ngrok-",  # ngrok: Ngrok-Trace-Id
)
"""Beginnings of further ones."""


def came_through_proxy(scope: Scope) -> bool:
    """Returns whether a request shows a proxy, by a header or by HTTP/1.0: nginx forwards with that version by default,
    and without any of the headers. A proxy that forwards bytes only cannot be seen."""
    names = Headers(scope=scope).keys()
    shown = any(name in HEADERS or name.startswith(PREFIXES) for name in names)
    return shown or scope.get("http_version") == "1.0"
