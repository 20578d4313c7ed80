-- Grants and row-level security for v0007_objects.py. Frozen with it.
--
-- An object is seen, recorded and forgotten by whoever made it, and by nobody else, administrators included. None is ever changed.

ALTER TABLE public.gateway_object ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.gateway_object FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, DELETE ON public.gateway_object TO keybearer_app;
GRANT SELECT, DELETE ON public.gateway_object TO keybearer_system;
CREATE POLICY app_read ON public.gateway_object FOR SELECT TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY app_insert ON public.gateway_object FOR INSERT TO keybearer_app
    WITH CHECK (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY app_delete ON public.gateway_object FOR DELETE TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY system ON public.gateway_object TO keybearer_system USING (true);
