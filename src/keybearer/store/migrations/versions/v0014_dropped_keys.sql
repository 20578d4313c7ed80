-- Grants and policies for v0014_dropped_keys.py. Frozen with it.
--
-- Only what is retired; that nothing is sealed under it any more, foreign keys and the program see to.

GRANT DELETE ON public.root_key, public.owner_key TO keybearer_system;
CREATE POLICY system_delete ON public.root_key AS RESTRICTIVE FOR DELETE TO keybearer_system USING (state = 'retired');
CREATE POLICY system_delete ON public.owner_key AS RESTRICTIVE FOR DELETE TO keybearer_system USING (state = 'retired');
