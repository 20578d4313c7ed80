-- Grants and policies for v0004_secret_life.py. Frozen with it.
--
-- Jobs take away what was deleted or replaced, and nothing else. Of a sealed value they read where it belongs, never the envelope.

GRANT DELETE ON public.secret TO keybearer_system;
CREATE POLICY system_delete ON public.secret AS RESTRICTIVE FOR DELETE TO keybearer_system USING (deleted_at IS NOT NULL);

GRANT SELECT (secret_id, owner_id, version, retired_at), DELETE ON public.secret_version TO keybearer_system;
CREATE POLICY system_read ON public.secret_version FOR SELECT TO keybearer_system USING (retired_at IS NOT NULL);
CREATE POLICY system_delete ON public.secret_version FOR DELETE TO keybearer_system USING (retired_at IS NOT NULL);
