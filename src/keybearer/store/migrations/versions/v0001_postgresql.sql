-- Roles, grants and row-level security for the tables of v0001_foundation.py. Frozen with it.
--
-- keybearer_app      what people and tokens act as; sees the rows of keybearer.user_id, which is set for each transaction
-- keybearer_system   jobs and the operator: all owners, but only the tables and columns that jobs need
-- keybearer_lookup   owns the functions that find one row before the caller is known; nobody can become it
--
-- The runtime login is a member of the first two, without inheriting: until a transaction takes a role it can read nothing.
-- Referential checks and cascades go around policies by PostgreSQL's design; keys that cross tables therefore carry the owner.

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['keybearer_app', 'keybearer_system', 'keybearer_lookup'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- another database of this server was migrated at the same time
            END;
        END IF;
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO keybearer_app, keybearer_system, keybearer_lookup;
GRANT SELECT ON public.alembic_version TO keybearer_app, keybearer_system;

-- Who asks. Unset and empty are alike: a setting that was ever set in a session reads as '' afterwards.

CREATE FUNCTION public.keybearer_caller() RETURNS uuid LANGUAGE sql STABLE PARALLEL SAFE
    RETURN NULLIF(pg_catalog.current_setting('keybearer.user_id', true), '')::uuid;
CREATE FUNCTION public.keybearer_is_admin() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
    RETURN COALESCE(pg_catalog.current_setting('keybearer.admin', true), '') = 'on';
CREATE FUNCTION public.keybearer_has_system_keys() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE
    RETURN COALESCE(pg_catalog.current_setting('keybearer.system_keys', true), '') = 'on';
CREATE FUNCTION public.keybearer_system_owner() RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '00000000-0000-0000-0000-000000000000'::uuid;
CREATE FUNCTION public.keybearer_management_writer() RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN '00000000-0000-0000-0000-000000000001'::uuid;

-- `(SELECT f())` in a policy is evaluated once a statement; `f()` would be, once a row. Where a policy has no WITH CHECK, new rows
-- are held to its USING.

-- Forced: the owner of the tables is held to the policies too.
DO $$
DECLARE
    found text;
BEGIN
    FOREACH found IN ARRAY ARRAY[
        'deployment', 'root_key', 'owner', 'owner_key', 'user_account', 'one_time_link', 'session', 'access_token', 'provider',
        'model', 'secret', 'secret_version', 'audit_writer', 'audit_record', 'usage_record', 'change'
    ] LOOP
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', found);
        EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', found);
    END LOOP;
END
$$;

-- deployment: everybody must know whether keys are frozen

GRANT SELECT ON public.deployment TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.deployment TO keybearer_system;
CREATE POLICY app_read ON public.deployment FOR SELECT TO keybearer_app USING (true);
CREATE POLICY system ON public.deployment TO keybearer_system USING (true);

-- root_key: whoever makes an owner key locks the row FOR SHARE, which asks for the right to update; no update passes the check

GRANT SELECT, UPDATE ON public.root_key TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.root_key TO keybearer_system;
CREATE POLICY app_read ON public.root_key FOR SELECT TO keybearer_app USING (true);
CREATE POLICY app_lock ON public.root_key FOR UPDATE TO keybearer_app USING (true) WITH CHECK (false);
CREATE POLICY system ON public.root_key TO keybearer_system USING (true);

-- owner

GRANT SELECT, INSERT, DELETE ON public.owner TO keybearer_app;
GRANT SELECT, INSERT ON public.owner TO keybearer_system;
CREATE POLICY app_read ON public.owner FOR SELECT TO keybearer_app
    USING (id = (SELECT public.keybearer_caller()) OR id = (SELECT public.keybearer_system_owner())
        OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app_insert ON public.owner FOR INSERT TO keybearer_app
    WITH CHECK (kind <> 'system' AND (SELECT public.keybearer_is_admin()));
CREATE POLICY app_delete ON public.owner FOR DELETE TO keybearer_app
    USING (kind = 'user' AND (id = (SELECT public.keybearer_caller()) OR (SELECT public.keybearer_is_admin())));
CREATE POLICY system ON public.owner TO keybearer_system USING (true);

-- owner_key: another user's are out of an administrator's sight too

GRANT SELECT, INSERT ON public.owner_key TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.owner_key TO keybearer_system;
CREATE POLICY app_read ON public.owner_key FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner())
            AND ((SELECT public.keybearer_has_system_keys()) OR (SELECT public.keybearer_is_admin()))));
CREATE POLICY app_insert ON public.owner_key FOR INSERT TO keybearer_app
    WITH CHECK (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_is_admin())));
CREATE POLICY system ON public.owner_key TO keybearer_system USING (true);

-- user_account

GRANT SELECT, INSERT, UPDATE, DELETE ON public.user_account TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.user_account TO keybearer_system;
CREATE POLICY app ON public.user_account TO keybearer_app
    USING (id = (SELECT public.keybearer_caller()) OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app_insert ON public.user_account AS RESTRICTIVE FOR INSERT TO keybearer_app
    WITH CHECK ((SELECT public.keybearer_is_admin()));
CREATE POLICY system ON public.user_account TO keybearer_system USING (true);

-- one_time_link: made and redeemed by the system; found by its hash through keybearer_link_by_hash

GRANT SELECT, INSERT, UPDATE, DELETE ON public.one_time_link TO keybearer_system;
CREATE POLICY system ON public.one_time_link TO keybearer_system USING (true);

-- session: an administrator sees and ends those of others

GRANT SELECT, INSERT, UPDATE, DELETE ON public.session TO keybearer_app;
GRANT SELECT, DELETE ON public.session TO keybearer_system;
CREATE POLICY app_read ON public.session FOR SELECT TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()) OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app_insert ON public.session FOR INSERT TO keybearer_app
    WITH CHECK (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY app_update ON public.session FOR UPDATE TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY app_delete ON public.session FOR DELETE TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()) OR (SELECT public.keybearer_is_admin()));
CREATE POLICY system ON public.session TO keybearer_system USING (true);

-- access_token: an administrator sees, switches off and deletes those of others, and makes none for them

GRANT SELECT, INSERT, UPDATE, DELETE ON public.access_token TO keybearer_app;
GRANT SELECT, UPDATE (last_used_at) ON public.access_token TO keybearer_system;
CREATE POLICY app ON public.access_token TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()) OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app_insert ON public.access_token AS RESTRICTIVE FOR INSERT TO keybearer_app
    WITH CHECK (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY system ON public.access_token TO keybearer_system USING (true);

-- provider, model: the system's are everybody's to read, and the administrators' to write

GRANT SELECT, INSERT, UPDATE, DELETE ON public.provider, public.model TO keybearer_app;
GRANT SELECT ON public.provider, public.model TO keybearer_system;
CREATE POLICY app_read ON public.provider FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller()) OR owner_id = (SELECT public.keybearer_system_owner()));
CREATE POLICY app ON public.provider TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_is_admin())));
CREATE POLICY system ON public.provider FOR SELECT TO keybearer_system USING (true);
CREATE POLICY app_read ON public.model FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller()) OR owner_id = (SELECT public.keybearer_system_owner()));
CREATE POLICY app ON public.model TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_is_admin())));
CREATE POLICY system ON public.model FOR SELECT TO keybearer_system USING (true);

-- secret: administrators read everybody's (no value is in this table); jobs count uses and mark what fails

GRANT SELECT, INSERT, UPDATE, DELETE ON public.secret TO keybearer_app;
GRANT SELECT, UPDATE (last_used_at, usage_count, last_used_in_workflow, state, state_reason, updated_at) ON public.secret
    TO keybearer_system;
CREATE POLICY app_read ON public.secret FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_has_system_keys()))
        OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app ON public.secret TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_is_admin())));
CREATE POLICY system ON public.secret TO keybearer_system USING (true);

-- secret_version: ciphertext is for its owner's eyes, and the system's for those who resolve with the system's keys

GRANT SELECT, INSERT, UPDATE, DELETE ON public.secret_version TO keybearer_app;
CREATE POLICY app_read ON public.secret_version FOR SELECT TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_has_system_keys()));
CREATE POLICY app ON public.secret_version TO keybearer_app
    USING (owner_id = (SELECT public.keybearer_caller())
        OR (owner_id = (SELECT public.keybearer_system_owner()) AND (SELECT public.keybearer_is_admin())));

-- audit: anybody's change extends the one chain of management records; lines of journals are the shipper's alone to write

GRANT SELECT, INSERT, UPDATE ON public.audit_writer TO keybearer_app, keybearer_system;
GRANT SELECT, INSERT ON public.audit_record TO keybearer_app, keybearer_system;
CREATE POLICY app_read ON public.audit_writer FOR SELECT TO keybearer_app USING (true);
CREATE POLICY app_insert ON public.audit_writer FOR INSERT TO keybearer_app
    WITH CHECK (id = (SELECT public.keybearer_management_writer()));
CREATE POLICY app_update ON public.audit_writer FOR UPDATE TO keybearer_app
    USING (id = (SELECT public.keybearer_management_writer()));
CREATE POLICY system ON public.audit_writer TO keybearer_system USING (true);
CREATE POLICY app_read ON public.audit_record FOR SELECT TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()) OR owner_id = (SELECT public.keybearer_caller())
        OR (SELECT public.keybearer_is_admin()));
CREATE POLICY app_insert ON public.audit_record FOR INSERT TO keybearer_app
    WITH CHECK (writer_id = (SELECT public.keybearer_management_writer()));
CREATE POLICY system ON public.audit_record TO keybearer_system USING (true);

-- usage_record: who called and who paid both see it

GRANT SELECT ON public.usage_record TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.usage_record TO keybearer_system;
CREATE POLICY app_read ON public.usage_record FOR SELECT TO keybearer_app
    USING (user_id = (SELECT public.keybearer_caller()) OR owner_id = (SELECT public.keybearer_caller())
        OR (SELECT public.keybearer_is_admin()));
CREATE POLICY system ON public.usage_record TO keybearer_system USING (true);

-- change: anybody's change is told; the feed, which is the system's, reads

GRANT INSERT ON public.change TO keybearer_app;
GRANT SELECT, INSERT, DELETE ON public.change TO keybearer_system;
GRANT USAGE ON SEQUENCE public.change_id_seq TO keybearer_app, keybearer_system;
CREATE POLICY app_insert ON public.change FOR INSERT TO keybearer_app WITH CHECK (true);
CREATE POLICY system ON public.change TO keybearer_system USING (true);

-- What is read before the caller is known: one row each, by an exact value that the asker must have.

GRANT SELECT ON public.access_token, public.session, public.user_account, public.one_time_link TO keybearer_lookup;
CREATE POLICY lookup ON public.access_token FOR SELECT TO keybearer_lookup USING (true);
CREATE POLICY lookup ON public.session FOR SELECT TO keybearer_lookup USING (true);
CREATE POLICY lookup ON public.user_account FOR SELECT TO keybearer_lookup USING (true);
CREATE POLICY lookup ON public.one_time_link FOR SELECT TO keybearer_lookup USING (true);

CREATE FUNCTION public.keybearer_token_by_id(wanted text)
    RETURNS TABLE (
        id text, token_hash bytea, user_id uuid, name text, scopes jsonb, allowed_providers jsonb, allowed_models jsonb,
        ip_allowlist jsonb, is_active boolean, expires_at timestamptz, last_used_at timestamptz, mac bytea,
        created_at timestamptz, user_role text, user_is_active boolean, user_mac bytea
    )
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.id, t.token_hash, t.user_id, t.name, t.scopes, t.allowed_providers, t.allowed_models, t.ip_allowlist, t.is_active,
        t.expires_at, t.last_used_at, t.mac, t.created_at, u.role, u.is_active, u.mac
    FROM public.access_token t JOIN public.user_account u ON u.id = t.user_id
    WHERE t.id = wanted;
END;

CREATE FUNCTION public.keybearer_session_by_hash(wanted bytea)
    RETURNS TABLE (
        id uuid, token_hash bytea, user_id uuid, ip text, user_agent text, last_seen_at timestamptz, expires_at timestamptz,
        mac bytea, created_at timestamptz, user_role text, user_is_active boolean, user_mac bytea
    )
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT s.id, s.token_hash, s.user_id, s.ip, s.user_agent, s.last_seen_at, s.expires_at, s.mac, s.created_at, u.role,
        u.is_active, u.mac
    FROM public.session s JOIN public.user_account u ON u.id = s.user_id
    WHERE s.token_hash = wanted;
END;

CREATE FUNCTION public.keybearer_user_by_email(wanted text)
    RETURNS TABLE (
        id uuid, email text, name text, password_hash text, role text, is_active boolean, fallback_allowed boolean, mac bytea,
        created_at timestamptz, updated_at timestamptz
    )
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT u.id, u.email, u.name, u.password_hash, u.role, u.is_active, u.fallback_allowed, u.mac, u.created_at, u.updated_at
    FROM public.user_account u
    WHERE u.email = wanted;
END;

CREATE FUNCTION public.keybearer_link_by_hash(wanted bytea)
    RETURNS TABLE (token_hash bytea, purpose text, expires_at timestamptz, used_at timestamptz, created_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT l.token_hash, l.purpose, l.expires_at, l.used_at, l.created_at
    FROM public.one_time_link l
    WHERE l.token_hash = wanted;
END;

CREATE FUNCTION public.keybearer_admin_exists() RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT 1 FROM public.user_account u WHERE u.role = 'admin');
END;

-- They become keybearer_lookup's; the right to make functions, which their new owner must have for that, ends with it.
DO $$
DECLARE
    found text;
BEGIN
    EXECUTE format('GRANT keybearer_lookup TO %I WITH INHERIT FALSE, SET TRUE', current_user);
    GRANT CREATE ON SCHEMA public TO keybearer_lookup;
    FOREACH found IN ARRAY ARRAY[
        'keybearer_token_by_id(text)', 'keybearer_session_by_hash(bytea)', 'keybearer_user_by_email(text)',
        'keybearer_link_by_hash(bytea)', 'keybearer_admin_exists()'
    ] LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION public.%s FROM PUBLIC', found);
        EXECUTE format('GRANT EXECUTE ON FUNCTION public.%s TO keybearer_app, keybearer_system', found);
        EXECUTE format('ALTER FUNCTION public.%s OWNER TO keybearer_lookup', found);
    END LOOP;
    REVOKE CREATE ON SCHEMA public FROM keybearer_lookup;
    EXECUTE format('REVOKE keybearer_lookup FROM %I', current_user);
END
$$;
