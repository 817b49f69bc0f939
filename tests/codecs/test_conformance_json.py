"""JSON passes the codec suite."""

from __future__ import annotations

from codec_sites import json_site

from tidewire.testing.codecs import CodecConformance, Site


class TestJsonCodec(CodecConformance):
    """What a codec promises, JSON keeps."""

    def site(self) -> Site:
        """Return JSON."""
        return json_site()
