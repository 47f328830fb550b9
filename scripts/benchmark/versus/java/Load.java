import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.SendStatus;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/**
 * The load of {@code scripts/bench versus}: Apache's own client, one producer or consumer a process.
 *
 * <pre>
 *   Load sync  NAMESRV QUEUES WARM_SECONDS SECONDS THREADS SIZE BATCH   each thread waits for its answer
 *   Load async NAMESRV QUEUES WARM_SECONDS SECONDS WINDOW SIZE          so many unanswered at a time
 *   Load flow  NAMESRV QUEUES WARM_SECONDS SECONDS THREADS SIZE RATE    paced sends, a push consumer follows
 *   Load fill  NAMESRV QUEUES COUNT SIZE                                a backlog, in batches
 *   Load drain NAMESRV COUNT                                            one push consumer takes it
 * </pre>
 * The line {@code BEGIN} says that the measured time begins, {@code END} and a JSON object that it is over; whoever
 * started this reads the server's CPU at both.  A send counts when it began within the measured time; latencies are in
 * nanoseconds, taken in this process; {@code flow} counts from the moment a message was due to be sent.
 */
public final class Load {
    private static final String TOPIC = "Versus";
    private static final int WARMING = 0;
    private static final int MEASURING = 1;
    private static final int ENDED = 2;

    private static final AtomicLong errors = new AtomicLong();
    private static final AtomicReference<String> firstError = new AtomicReference<>("");
    private static final ConcurrentLinkedQueue<Latencies> everyones = new ConcurrentLinkedQueue<>();
    private static final ThreadLocal<Latencies> latencies = ThreadLocal.withInitial(() -> {
        Latencies mine = new Latencies();
        everyones.add(mine);
        return mine;
    });
    private static volatile int phase = WARMING;

    private Load() {
    }

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "sync":
                sync(args[1], number(args[2]), number(args[3]), number(args[4]), number(args[5]), number(args[6]), number(args[7]));
                break;
            case "async":
                async(args[1], number(args[2]), number(args[3]), number(args[4]), number(args[5]), number(args[6]));
                break;
            case "flow":
                flow(args[1], number(args[2]), number(args[3]), number(args[4]), number(args[5]), number(args[6]), number(args[7]));
                break;
            case "fill":
                fill(args[1], number(args[2]), number(args[3]), number(args[4]));
                break;
            case "drain":
                drain(args[1], number(args[2]));
                break;
            default:
                throw new IllegalArgumentException(args[0]);
        }
        System.exit(0);
    }

    private static int number(String text) {
        return Integer.parseInt(text);
    }

    private static void sync(String namesrv, int queues, int warmSeconds, int seconds, int threads, int size, int batch) throws Exception {
        DefaultMQProducer producer = producer(namesrv, queues);
        start(threads, index -> {
            byte[] body = body(size);
            while (phase != ENDED) {
                boolean counts = phase == MEASURING;
                long began = System.nanoTime();
                SendResult result = batch > 1 ? producer.send(several(body, batch)) : producer.send(new Message(TOPIC, body));
                long took = System.nanoTime() - began;
                check(result);
                if (counts) {
                    latencies.get().record(took);
                }
            }
        });
        measure(warmSeconds, seconds, batch);
    }

    private static void async(String namesrv, int queues, int warmSeconds, int seconds, int window, int size) throws Exception {
        DefaultMQProducer producer = producer(namesrv, queues);
        Semaphore free = new Semaphore(window);
        start(1, index -> {
            byte[] body = body(size);
            while (phase != ENDED) {
                free.acquire();
                boolean counts = phase == MEASURING;
                long began = System.nanoTime();
                producer.send(new Message(TOPIC, body), new SendCallback() {
                    @Override
                    public void onSuccess(SendResult result) {
                        long took = System.nanoTime() - began;
                        free.release();
                        check(result);
                        if (counts) {
                            latencies.get().record(took);
                        }
                    }

                    @Override
                    public void onException(Throwable error) {
                        free.release();
                        failed(error.toString());
                    }
                });
            }
        });
        measure(warmSeconds, seconds, 1);
    }

    private static void flow(String namesrv, int queues, int warmSeconds, int seconds, int threads, int size, int rate) throws Exception {
        DefaultMQProducer producer = producer(namesrv, queues);
        producer.send(new Message(TOPIC, body(size)));
        Semaphore heard = new Semaphore(0);
        DefaultMQPushConsumer consumer = consumer(namesrv);
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            long now = System.nanoTime();
            for (MessageExt message : messages) {
                long due = ByteBuffer.wrap(message.getBody()).getLong();
                if (due == 0) {
                    heard.release();
                } else if (phase == MEASURING) {
                    latencies.get().record(now - due);
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        if (!heard.tryAcquire(60, TimeUnit.SECONDS)) {
            throw new IllegalStateException("the consumer heard nothing for 60 s");
        }
        long begin = System.nanoTime();
        start(threads, index -> {
            byte[] body = body(size);
            for (long sent = index; phase != ENDED; sent += threads) {
                long due = begin + sent * 1_000_000_000L / rate;
                while (System.nanoTime() < due) {
                    LockSupport.parkNanos(due - System.nanoTime());
                }
                ByteBuffer.wrap(body).putLong(due);
                check(producer.send(new Message(TOPIC, body)));
            }
        });
        measure(warmSeconds, seconds, 1);
    }

    private static void fill(String namesrv, int queues, int count, int size) throws Exception {
        DefaultMQProducer producer = producer(namesrv, queues);
        AtomicLong left = new AtomicLong(count);
        List<Thread> threads = start(8, index -> {
            byte[] body = body(size);
            for (long before = left.getAndAdd(-32); before > 0; before = left.getAndAdd(-32)) {
                check(producer.send(several(body, (int) Math.min(32, before))));
            }
        });
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.println("END {\"errors\": " + errors + ", \"first_error\": \"" + firstError + "\"}");
    }

    private static void drain(String namesrv, int count) throws Exception {
        AtomicLong taken = new AtomicLong();
        Semaphore done = new Semaphore(0);
        DefaultMQPushConsumer consumer = consumer(namesrv);
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            if (taken.addAndGet(messages.size()) >= count) {
                done.release();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        long begin = System.nanoTime();
        System.out.println("BEGIN");
        consumer.start();
        if (!done.tryAcquire(300, TimeUnit.SECONDS)) {
            throw new IllegalStateException(taken + " of " + count + " messages came within 300 s");
        }
        end(taken.get(), System.nanoTime() - begin);
    }

    private static DefaultMQProducer producer(String namesrv, int queues) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("versus_producer");
        producer.setNamesrvAddr(namesrv);
        producer.setSendMsgTimeout(30_000);
        producer.start();
        producer.createTopic("TBW102", TOPIC, queues);
        return producer;
    }

    private static DefaultMQPushConsumer consumer(String namesrv) throws Exception {
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("versus_consumer");
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(TOPIC, "*");
        return consumer;
    }

    private static byte[] body(int size) {
        byte[] body = new byte[size];
        for (int i = 8; i < size; i++) { // the first eight bytes are a time in flow, and stay zero elsewhere
            body[i] = (byte) ('a' + i % 26);
        }
        return body;
    }

    private static List<Message> several(byte[] body, int count) {
        List<Message> messages = new ArrayList<>(count);
        for (int i = 0; i < count; i++) {
            messages.add(new Message(TOPIC, body));
        }
        return messages;
    }

    private static void check(SendResult result) {
        if (result.getSendStatus() != SendStatus.SEND_OK) {
            failed(result.getSendStatus().toString());
        }
    }

    private static void failed(String why) {
        errors.incrementAndGet();
        firstError.compareAndSet("", why.replaceAll("[^ -~]|[\"\\\\]", " "));
    }

    /** Work of one thread; what it throws counts as an error and the work begins anew. */
    private interface Work {
        void run(int index) throws Exception;
    }

    private static List<Thread> start(int count, Work work) {
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            int index = i;
            Thread thread = new Thread(() -> {
                boolean again = true;
                while (again && phase != ENDED) {
                    try {
                        work.run(index);
                        again = false;
                    } catch (Exception error) {
                        failed(error.toString());
                    }
                }
            }, "load-" + i);
            thread.setDaemon(true);
            thread.start();
            threads.add(thread);
        }
        return threads;
    }

    private static void measure(int warmSeconds, int seconds, int messagesEach) throws InterruptedException {
        Thread.sleep(warmSeconds * 1000L);
        errors.set(0);
        firstError.set("");
        long begin = System.nanoTime();
        phase = MEASURING;
        System.out.println("BEGIN");
        Thread.sleep(seconds * 1000L);
        phase = ENDED;
        long took = System.nanoTime() - begin;
        long settled = 0;
        for (Latencies one : everyones) {
            settled += one.count();
        }
        end(settled * messagesEach, took);
    }

    private static void end(long messages, long tookNanos) {
        Latencies all = new Latencies();
        for (Latencies one : everyones) {
            all.add(one);
        }
        System.out.printf(Locale.ROOT, "END {\"messages\": %d, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
                + "\"max_us\": %.1f, \"errors\": %d, \"first_error\": \"%s\"}%n",
            messages, tookNanos / 1e9, all.microsAt(0.5), all.microsAt(0.99), all.microsAt(0.999), all.microsAt(1), errors.get(), firstError.get());
    }
}
