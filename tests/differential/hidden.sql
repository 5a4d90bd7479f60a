-- Code that runs without being named: what it leaves in its session must neither get lost nor meet anybody else.
SET SESSION AUTHORIZATION app;
CREATE FUNCTION locks() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_lock(100 + NEW.a); RETURN NEW; END$$;
CREATE FUNCTION unlocks() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_unlock(100 + OLD.a); RETURN OLD; END$$;
CREATE FUNCTION sets() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM set_config('work_mem', '7MB', false); PERFORM set_config('app.x', 'set', false); RETURN NEW; END$$;
CREATE FUNCTION sets_by_text() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN EXECUTE 'SET work_mem = ''6MB'''; RETURN NEW; END$$;
CREATE FUNCTION makes_temporary() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN CREATE TEMP TABLE IF NOT EXISTS made (a int); INSERT INTO made VALUES (NEW.a); RETURN NEW; END$$;
CREATE FUNCTION listens() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN LISTEN unseen; RETURN NEW; END$$;
CREATE FUNCTION prepares() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN EXECUTE 'PREPARE unseen AS SELECT 42'; RETURN NEW; END$$;
CREATE FUNCTION harmless() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM set_config('work_mem', '8MB', true), pg_advisory_xact_lock(9); NEW.b := upper(NEW.b); RETURN NEW; END$$;
CREATE FUNCTION passes_on() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO locking VALUES (NEW.a); RETURN NEW; END$$;
CREATE FUNCTION lock_of(a int) RETURNS int LANGUAGE sql STABLE AS
    $$SELECT $1 FROM (SELECT pg_advisory_lock(200 + $1)) AS locked$$;
CREATE FUNCTION lock_by_text(a int) RETURNS int LANGUAGE plpgsql STABLE AS
    $$DECLARE b int; BEGIN EXECUTE 'SELECT 1 FROM (SELECT pg_advisory_lock($1)) AS locked' INTO b USING 700 + a; RETURN b; END$$;
CREATE FUNCTION lock_within(a int) RETURNS int LANGUAGE sql BEGIN ATOMIC
    SELECT $1 FROM (SELECT pg_advisory_lock(300 + $1)) AS locked; END;
CREATE FUNCTION calls_it(a int) RETURNS int LANGUAGE plpgsql STABLE AS
    $$BEGIN RETURN "lock_of"(a); END$$;
CREATE FUNCTION lock_now(a int) RETURNS int LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_lock(600 + a); RETURN a; END$$;
CREATE TABLE locking (a int PRIMARY KEY);
CREATE TRIGGER t AFTER INSERT OR UPDATE ON locking FOR EACH ROW EXECUTE FUNCTION locks();
CREATE TRIGGER u AFTER DELETE ON locking FOR EACH ROW EXECUTE FUNCTION unlocks();
CREATE TABLE setting (a int);
CREATE TRIGGER t BEFORE INSERT ON setting FOR EACH ROW EXECUTE FUNCTION sets();
CREATE TABLE setting_by_text (a int);
CREATE TRIGGER t BEFORE INSERT ON setting_by_text FOR EACH ROW EXECUTE FUNCTION sets_by_text();
CREATE TABLE temporary (a int);
CREATE TRIGGER t BEFORE INSERT ON temporary FOR EACH ROW EXECUTE FUNCTION makes_temporary();
CREATE TABLE listening (a int);
CREATE TRIGGER t BEFORE INSERT ON listening FOR EACH ROW EXECUTE FUNCTION listens();
CREATE TABLE preparing (a int);
CREATE TRIGGER t BEFORE INSERT ON preparing FOR EACH ROW EXECUTE FUNCTION prepares();
CREATE TABLE quiet (a int, b text);
CREATE TRIGGER t BEFORE INSERT ON quiet FOR EACH ROW EXECUTE FUNCTION harmless();
CREATE TABLE passing_on (a int);
CREATE TRIGGER t BEFORE INSERT ON passing_on FOR EACH ROW EXECUTE FUNCTION passes_on();
CREATE TABLE deferring (a int);
CREATE CONSTRAINT TRIGGER t AFTER INSERT ON deferring DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION locks();
CREATE TABLE defaulting (a int, b int DEFAULT lock_of(1));
CREATE TABLE checking (a int CHECK (lock_within(a) = a));
CREATE TABLE ruled (a int);
CREATE RULE r AS ON INSERT TO ruled DO ALSO INSERT INTO locking VALUES (NEW.a);
CREATE TABLE parent (a int PRIMARY KEY);
CREATE TABLE child (a int REFERENCES parent ON DELETE CASCADE);
CREATE FUNCTION locks_old() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN PERFORM pg_advisory_lock(400 + OLD.a); RETURN OLD; END$$;
CREATE TRIGGER t BEFORE DELETE ON child FOR EACH ROW EXECUTE FUNCTION locks_old();
CREATE TABLE split (a int) PARTITION BY LIST (a);
CREATE TABLE split_1 PARTITION OF split FOR VALUES IN (1);
CREATE TRIGGER t BEFORE INSERT ON split_1 FOR EACH ROW EXECUTE FUNCTION locks();
CREATE VIEW over_locking AS SELECT a FROM locking;
CREATE VIEW locks_when_read AS SELECT lock_of(5) AS a;
CREATE VIEW instead AS SELECT 1 AS a;
CREATE TRIGGER t INSTEAD OF INSERT ON instead FOR EACH ROW EXECUTE FUNCTION locks();
CREATE DOMAIN locked AS int CHECK (lock_now(VALUE) = VALUE);
CREATE AGGREGATE locked_total (int) (SFUNC = int4pl, FINALFUNC = lock_of, STYPE = int, INITCOND = '0');
CREATE OPERATOR ### (RIGHTARG = int, FUNCTION = lock_now);
RESET SESSION AUTHORIZATION;
CREATE FUNCTION locks_too() RETURNS event_trigger LANGUAGE plpgsql AS
    $$BEGIN IF tg_tag = 'CREATE DOMAIN' THEN PERFORM pg_advisory_lock(500); END IF; END$$;
CREATE EVENT TRIGGER unseen ON ddl_command_start EXECUTE FUNCTION locks_too();
