"""What the commands of the search service share."""

from __future__ import annotations

from indexer.cli.common import context_opener
from search_service.service_context import ServiceContext

with_context = context_opener(ServiceContext)
