"""Codecs: an event type's bytes. Synchronous and pure; `tidewire.protocols.Codec` is the seam."""
